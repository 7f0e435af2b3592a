"""Numbers of a column of texts, out of files that may be written differently: 58.5 in one, 58,5 in the other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from fedham_flwr.core.errors import UserError
from fedham_flwr.data.kinds import table_values as meaning
from fedham_flwr.data.kinds.table_column import Column, Numbers

Where = Callable[[int], str]
"""Where a row stands, in words: `north.csv, line 14`."""
Signs = Sequence[tuple[int, int, str]]
"""Of the rows from one number to before another, the sign before decimals."""


def numbers_of_texts(column: Column, values: Any, where: Where, signs: Signs) -> tuple[Numbers, tuple[str, ...]]:
    """[n, 1], and what had to be understood.

    Args:
        column: what it is.
        values: as `table_values.texts` gives them.
        where: where a row stands.
        signs: of each file, together all rows.

    Raises:
        UserError: a value is no number, or it isn't plain which.
    """
    found, notes = [], dict[str, None]()
    for start, stop, sign in signs:
        part = values[start:stop]
        if sign == "?" and not column.decimal and meaning.commas(part) == "either":
            raise _unclear(column, part, start, where)
        parsed = meaning.numbers(part, column.decimal or "." if sign == "?" else sign)
        if parsed.bad >= 0:
            row = start + parsed.bad
            raise no_value(column, values, row, where, _wanted_number(values[row].as_py(), sign))
        found.append(parsed.values)
        notes |= dict.fromkeys(parsed.notes)
    return np.concatenate(found)[:, None], tuple(notes)


def _unclear(column: Column, part: Any, start: int, where: Where) -> UserError:
    import pyarrow.compute as pc

    row = int(pc.fill_null(pc.match_substring(part, ","), False).to_numpy(zero_copy_only=False).argmax())
    return UserError(
        f"column '{column.name}' holds '{part[row].as_py()}' in {where(start + row)}, where the comma may be before "
        'decimals or between thousands: set table.decimal="," or table.decimal=".".'
    )


def _wanted_number(text: str, sign: str) -> str:
    if "," in text and sign == ".":
        return 'a number (if the comma is before its decimals, set table.decimal=",")'
    if sign == "," and "." in text:
        return "a number with a comma before its decimals, as others in the file have it"
    if text and meaning.number(text, sign) is not None:
        return "a percent sign in every row, or in none"
    return "a number, or nothing where one is missing (table.missing adds signs for that)"


def no_value(column: Column, values: Any, row: int, where: Where, wanted: str) -> UserError:
    """What to say of a value that a column can't hold."""
    return UserError(f"column '{column.name}' holds '{values[row].as_py()}' in {where(row)}; wanted {wanted}.")
