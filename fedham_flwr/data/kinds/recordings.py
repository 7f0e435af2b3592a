"""Long recordings, rows in the order of time, cut into windows.

A window never crosses two recordings, two clients, or a gap in time. Letters: R rows, C channels, N windows of T rows.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from fedham_flwr.core.errors import UserError, first_line
from fedham_flwr.data.column_values import column_of, kind_of_texts, mostly_numbers
from fedham_flwr.data.columns import is_number, kind_of_column
from fedham_flwr.data.csv_places import place
from fedham_flwr.data.kinds.table_column import Column, columns_of
from fedham_flwr.data.kinds.table_decoding import features
from fedham_flwr.data.kinds.table_kinds import decimal_signs
from fedham_flwr.data.kinds.table_numbers import numbers_of_texts
from fedham_flwr.data.kinds.table_settings import TableSettings
from fedham_flwr.data.kinds.table_values import dates, texts
from fedham_flwr.data.labels import codes_of

if TYPE_CHECKING:
    import datasets

log = logging.getLogger("fedham_flwr")

Indices = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Recordings:
    """What of the rows of recordings matters to windows.

    Attributes:
        values: float32 [R, C], NaN where missing.
        recording: int64 [R], which one each row is of.
        names: of the recordings.
        time: float64 [R], or None where the rows are in order.
    """

    values: npt.NDArray[np.float32]
    recording: Indices
    names: list[str]
    time: npt.NDArray[np.float64] | None


def read(data: datasets.Dataset, recipe: Mapping[str, Any]) -> Recordings:
    """The channels, recordings and times of all rows.

    Args:
        data: all rows.
        recipe: names the columns.

    Raises:
        UserError: a column is of another kind, a time is missing, or a value is infinite.
    """
    for column in recipe["columns"]:
        feature = data.features[column["name"]]
        if not (kind_of_column(feature).endswith("string") or is_number(data, column["name"])):
            raise UserError(
                f"feature-column names '{column['name']}' of kind {kind_of_column(feature)}, but the channels of a "
                "series must be numbers."
            )
    written = TableSettings(decimal=recipe.get("decimal", ""), missing=" ".join(recipe.get("missing", ())))
    values = features(data, columns_of(recipe["columns"]), written)
    recording, names = np.zeros(len(data), dtype=np.int64), [""]
    if recipe["recording"]:
        recording, names = codes_of(data, recipe["recording"], "series.recording")
    time = _seconds(data, recipe["time"], written) if recipe["time"] else None
    return Recordings(values, recording, names, time)


def _seconds(data: datasets.Dataset, name: str, written: TableSettings) -> npt.NDArray[np.float64]:
    """Times in seconds, or the numbers of the column."""
    import pyarrow as pa
    import pyarrow.compute as pc

    column, missing = column_of(data, name).combine_chunks(), written.missing.split()
    is_text = kind_of_column(data.features[name]).endswith("string")
    column = texts(column, missing) if is_text else column
    if column.null_count:
        row = int(column.is_null().to_numpy(zero_copy_only=False).argmax())
        raise UserError(f"series.time '{name}' is empty in {place(data, row)}, but every row needs a time.")
    if is_text:
        times = _of_texts(data, name, column, written)
    elif is_number(data, name):
        times = pc.cast(column, pa.float64(), safe=False).to_numpy(zero_copy_only=False)
    else:
        try:
            moments = pc.cast(pc.cast(column, pa.timestamp("us"), safe=False), pa.int64())
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
            raise UserError(f"series.time '{name}' must hold {_TIMES}: {first_line(error)}") from error
        times = moments.to_numpy(zero_copy_only=False) / 1e6
    if not np.isfinite(times).all():
        raise UserError(
            f"series.time '{name}' is no finite number in {place(data, int((~np.isfinite(times)).argmax()))}."
        )
    return np.asarray(times, dtype=np.float64)


_TIMES = "numbers or times such as 2024-05-31 08:00:00"


def _of_texts(data: datasets.Dataset, name: str, column: Any, written: TableSettings) -> npt.NDArray[np.float64]:
    """Of texts, of which each is a number or each is a moment."""
    if kind_of_texts(data, name, written.missing.split()) == "number" or mostly_numbers(data, name):
        where, signs = partial(place, data), decimal_signs(data, written)
        return numbers_of_texts(Column(name), column, where, signs)[0][:, 0]
    days = dates(column)
    if days.bad >= 0:
        raise UserError(
            f"series.time '{name}' holds '{column[days.bad].as_py()}' in {place(data, days.bad)}, but must hold "
            f"{_TIMES}."
        )
    return np.asarray(np.round(days.values * 86400, 6))


# ---- windows ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Windows:
    """Windows of recordings.

    Attributes:
        values: float32 [N, T, C].
        spans: int64 [N, 3]: the recording (of one client), where in the order of all rows the window begins, and T.
        order: int64 [R], the rows in the order in which windows are cut.
    """

    values: npt.NDArray[np.float32]
    spans: Indices
    order: Indices

    def first(self, rows: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Of what each row has, [R, ...], that of each window's first row, [N, ...]."""
        found: npt.NDArray[Any] = rows[self.order[self.spans[:, 1]]]
        return found

    def labels(self, rows: npt.NDArray[Any], which: Literal["last", "majority"]) -> npt.NDArray[Any]:
        """The label of each window: int64 [N] of classes, uint8 [N, k] of labels, float32 [N] or [N, k] of values.

        Args:
            rows: of each row: [R] or [R, k].
            which: of its last row; or of most of its rows, of several classes as frequent the first.

        Raises:
            UserError: values have no majority.
        """
        starts, length = self.spans[:, 1], self.values.shape[1]
        if which == "last":
            last: npt.NDArray[Any] = rows[self.order[starts + length - 1]]
            return last
        if rows.dtype == np.float32:
            raise UserError('series.label="majority" is for classes and labels, and the target is value: set "last".')
        whole = rows[self.order]
        flags = whole[:, None] == np.arange(whole.max(initial=0) + 1) if rows.ndim == 1 else whole
        sums = np.concatenate([np.zeros((1, flags.shape[1]), np.int64), np.cumsum(flags, axis=0, dtype=np.int64)])
        counts = sums[starts + length] - sums[starts]
        found: npt.NDArray[Any] = counts.argmax(axis=1) if rows.ndim == 1 else 2 * counts > length
        chosen: npt.NDArray[Any] = found.astype(rows.dtype)
        return chosen


def cut(found: Recordings, owners: Indices | None, recipe: Mapping[str, Any]) -> Windows:
    """All windows, by client, recording and time.

    Args:
        found: the rows.
        owners: int64 [R], whose each row is; None: all are one client's.
        recipe: length, stride and gap.

    Raises:
        UserError: no recording is as long as a window.
    """
    owner = np.zeros(len(found.values), dtype=np.int64) if owners is None else owners
    time = np.zeros(len(owner)) if found.time is None else found.time
    order = np.lexsort((np.arange(len(owner)), time, found.recording, owner))
    whose = np.stack([owner, found.recording], axis=1)[order]
    other = (whose[1:] != whose[:-1]).any(axis=1)
    if found.time is not None and (same := ~other & (np.diff(time[order]) == 0)).any():
        name = found.names[found.recording[order[same.argmax()]]]
        log.warning(
            "%d rows have the time of another one of the same recording%s: if they are of several recordings, windows "
            "mix these, and series.recording must name the column that tells them apart",
            int(same.sum()),
            f", first in '{name}'" if name else "",
        )
    # A time such as 0.8 is rounded, so that 0.8 - 0.7 is above 0.1: by as much a step may be longer.
    longest = recipe["gap"] + 2 * np.spacing(np.abs(time[order][1:]))
    new = other | (np.diff(time[order]) > longest if recipe["gap"] else False)
    begins = np.flatnonzero(np.concatenate([[True], new]))
    sizes = np.diff(np.append(begins, len(order)))
    length, stride = recipe["length"], recipe["stride"]
    counts = np.where(sizes >= length, (sizes - length) // stride + 1, 0)
    if not counts.sum():
        raise UserError(
            f"series.length={length}, but the longest stretch of rows without a gap has {sizes.max(initial=0)}: set a "
            "smaller one."
        )
    within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    starts = np.repeat(begins, counts) + within * stride
    number = np.concatenate([[0], np.cumsum(other)])[starts]
    views = np.lib.stride_tricks.sliding_window_view(found.values[order], length, axis=0)
    values = np.ascontiguousarray(views[starts].transpose(0, 2, 1))
    return Windows(values, np.stack([number, starts, np.full(len(starts), length)], axis=1), order)
