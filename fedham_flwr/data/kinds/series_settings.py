"""The settings under `series.`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Ge


@dataclass(frozen=True)
class SeriesSettings:
    """Settings under `series.`.

    Attributes:
        length: steps of a sample; 0: as long as the lists are, and columns of numbers are no recordings.
        stride: recordings: rows from one window to the next; 0: length, so that none overlap.
        time: recordings: the column by which rows are ordered; empty: they are in order.
        recording: recordings: the column that says which one a row is of; empty: each client has one.
        gap: recordings: no window has two neighbours further apart, in seconds or the numbers of `time`; 0: any may be.
        label: recordings: a window's label is that of its last row, or that of most of its rows.
        split: recordings: test on the end of each one in time, or on whole recordings.
    """

    length: Annotated[int, Ge(0)] = 0
    stride: Annotated[int, Ge(0)] = 0
    time: str = ""
    recording: str = ""
    gap: Annotated[float, Ge(0)] = 0.0
    label: Literal["last", "majority"] = "last"
    split: Literal["time", "recording"] = "time"
