"""The settings under `table.`: how files of rows are read, and what their columns may hold."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class TableSettings:
    """Settings under `table.`.

    Attributes:
        separator: between the fields of a .csv file; empty: found in its first lines.
        decimal: the sign before the decimals of a number, . or ,; empty: found in the numbers themselves.
        missing: values that stand for one that is missing, with blanks between, beside the usual ones.
        encoding: of a .csv file, by a name that Python knows; empty: UTF-8, or what a byte-order mark says.
        categories: where a column holds words and no schema says which: refuse it, take those that are found in the
            whole data set (a simulation), or let the sites agree on the union of their words.
        unlabelled: what becomes of rows without a label.
        schema: the TOML file that says what each column holds; empty: none.
    """

    separator: str = ""
    decimal: Literal["", ".", ","] = ""
    missing: str = ""
    encoding: str = ""
    categories: Literal["refuse", "found", "shared"] = "refuse"
    unlabelled: Literal["refuse", "leave-out"] = "refuse"
    schema: str = ""


AS_FOUND = TableSettings()
"""The defaults."""
