"""The values of one column of a data set, and what they hold where they are texts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from fedham_flwr.data.kinds.table_values import Parsed, booleans, dates, number, numbers, texts

if TYPE_CHECKING:
    import datasets

_HEAD = 100  # rows in which words show at once
_READERS: Mapping[str, Callable[[Any], Parsed]] = {
    "number": numbers, "number,": partial(numbers, decimal=","), "boolean": booleans, "date": dates,
}  # fmt: skip


def column_of(data: datasets.Dataset, name: str) -> Any:
    """A column as an Arrow chunked array."""
    return data.select_columns([name]).with_format("arrow")[:].column(name)


def kind_of_texts(data: datasets.Dataset, name: str, missing: Sequence[str] = ()) -> str:
    """What a column of texts holds.

    Args:
        data: all rows.
        name: of the column.
        missing: markers of what is missing, beside the usual ones.

    Returns:
        number, boolean or date; or "" for words.
    """
    column, kind = column_of(data, name), ""
    for rows in (_HEAD, len(column)):
        given = texts(column[:rows], missing)
        kind = next((kind for kind, read in _READERS.items() if read(given).bad < 0), "")
        if not kind:
            return ""
    return kind.rstrip(",")


def mostly_numbers(data: datasets.Dataset, name: str) -> bool:
    """Whether most of the first texts of a column are numbers, so that the others are mistakes."""
    given = texts(column_of(data, name)[:_HEAD]).drop_null().to_pylist()
    return sum(number(text) is not None or number(text, ",") is not None for text in given) > len(given) / 2
