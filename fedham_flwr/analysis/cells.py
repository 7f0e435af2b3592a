"""Tables as data: columns, cells with their numbers, and notes; `writing` makes files of them, `page` a page."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Kind = Literal["text", "number"]
Mark = Literal["floor", "used", "best", "better", "worse"]


@dataclass(frozen=True)
class Column:
    """What a column of a table holds.

    Attributes:
        name: its heading.
        kind: text; or number, of which every cell has a value or is empty, so that it can be sorted.
        help: what the numbers are, in a sentence.
        unit: of the text of its cells, to be shown with the heading: % of a score that is a fraction in `value`.
    """

    name: str
    kind: Kind = "number"
    help: str = ""
    unit: str = ""


@dataclass(frozen=True)
class Cell:
    """One entry of a table.

    Attributes:
        text: as it is read, rounded.
        value: the number at full precision, in the unit of the heading, a score as it is in the files: a fraction where
            the text is in percent. None of words, and where nothing was measured.
        low: the lower end of its 95 % interval; None without one.
        high: the upper end.
        note: why there is no number or no interval, or how many seeds it is of, where that is not all of them.
        marks: floor, a method that every comparison has; used, the model that the method stands for; best, above all
            others by verdict; better or worse than the reference by verdict.
    """

    text: str = ""
    value: float | None = None
    low: float | None = None
    high: float | None = None
    note: str = ""
    marks: frozenset[Mark] = frozenset()


@dataclass(frozen=True)
class Table:
    """A table that can be printed, sorted and written.

    Attributes:
        name: of its files, such as results.
        title: in a sentence.
        columns: C of them.
        rows: of C cells each.
        notes: how to read it, a sentence each.
    """

    name: str
    title: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[Cell, ...], ...]
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for row in self.rows:
            if len(row) != len(self.columns):
                raise ValueError(f"a row of the table {self.name} has {len(row)} cells, wanted {len(self.columns)}")
