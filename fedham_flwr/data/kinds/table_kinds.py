"""What each column of a table holds: as a schema says, or as its type or its texts do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from fedham_flwr.core.errors import UserError
from fedham_flwr.data.column_values import column_of, kind_of_texts
from fedham_flwr.data.columns import kind_of_column
from fedham_flwr.data.csv_places import place, spans
from fedham_flwr.data.kinds.table_column import Column
from fedham_flwr.data.kinds.table_columns import encode
from fedham_flwr.data.kinds.table_settings import TableSettings
from fedham_flwr.data.kinds.table_values import commas, number, texts

if TYPE_CHECKING:
    import datasets

MOST_WORDS = 1000
"""Categories of a column that no schema names."""
_FOUND = ("month", "weekday", "hour")


def columns_of_table(
    data: datasets.Dataset, names: Sequence[str], settings: TableSettings, declared: Sequence[Column] = ()
) -> list[Column]:
    """What each column of a table holds: as a schema says, or as its type or its texts do.

    Args:
        data: all rows.
        names: of the columns.
        settings: how texts are read, and what becomes of words.
        declared: the columns of a schema; none: found.

    Raises:
        UserError: a column holds words that no schema names, or it isn't plain which numbers it holds.
    """
    by_name = {column.name: column for column in declared}
    comma = any(sign == "," for *_, sign in decimal_signs(data, settings))
    return [_column(data, name, settings, comma, by_name.get(name)) for name in names]


def _column(data: datasets.Dataset, name: str, settings: TableSettings, comma: bool, declared: Column | None) -> Column:
    feature = data.features[name]
    kind = kind_of_column(feature)
    if kind.endswith("string") and (declared is None or declared.kind == "number"):
        return _column_of_texts(data, name, settings, comma, declared)
    if declared is not None:
        return declared
    if kind.startswith(("timestamp", "date")):
        return _column_of_dates(data, Column(name, kind="date", parts=_FOUND), ())
    if getattr(feature, "feature", None) is not None:
        return Column(name, kind="list", size=_length(data, name))
    return Column(name, tuple(getattr(feature, "names", ())))


def _column_of_texts(
    data: datasets.Dataset, name: str, settings: TableSettings, comma: bool, declared: Column | None
) -> Column:
    missing = settings.missing.split()
    kind = "number" if declared else kind_of_texts(data, name, missing)
    if kind == "number":
        return replace(declared or Column(name), decimal="," if comma else "")
    if kind == "date":
        return _column_of_dates(data, Column(name, kind="date", parts=_FOUND), missing)
    return Column(name, kind=kind) if kind else _column_of_words(data, name, settings)


def _column_of_words(data: datasets.Dataset, name: str, settings: TableSettings) -> Column:
    """A column of categories, if the settings allow to take those that are found; a number that isn't one is named."""
    import pyarrow.compute as pc

    column = texts(column_of(data, name), settings.missing.split())
    words: list[str] = sorted(word for word in pc.unique(column).to_pylist() if word is not None)
    odd = [word for word in words if number(word) is None and number(word, ",") is None]
    if not odd:
        return Column(name)  # numbers, each by itself: what is wrong with them together is said when they are read
    if settings.categories == "refuse" or len(odd) < len(words) / 10:
        row = int(pc.index(column, odd[0]).as_py())
        what = "no number" if len(odd) < len(words) else "a word"
        raise UserError(
            f"feature-column names '{name}', which holds '{odd[0]}' in {place(data, row)}, {what}: say "
            "what it holds in a schema (fedham schema DATA > schema.toml drafts one, and table.schema names it), "
            'or, in a simulation, set table.categories="found".'
        )
    if len(words) > MOST_WORDS or (len(words) > 20 and len(words) > len(column) / 2):
        raise UserError(
            f"feature-column names '{name}', which has {len(words)} different words in {len(column)} rows: an "
            "identifier, or free text? Leave it out, or name its categories in a schema."
        )
    return Column(name, tuple(words), "category")


def _column_of_dates(data: datasets.Dataset, column: Column, missing: Sequence[str]) -> Column:
    """With the hour if there is a time of day in any row."""
    days = encode(column, column_of(data, column.name), lambda row: place(data, row), missing).numbers[:, 0]
    timed = (days[~np.isnan(days)] % 1 != 0).any()
    return column if timed else replace(column, parts=("month", "weekday"))


def _length(data: datasets.Dataset, name: str) -> int:
    """The numbers of the first list of a column."""
    import pyarrow.compute as pc

    lengths = pc.list_value_length(column_of(data, name).combine_chunks()).drop_null()
    if not len(lengths) or not lengths[0].as_py():
        raise UserError(f"feature-column names '{name}', which has no list with numbers.")
    return int(lengths[0].as_py())


def decimal_signs(data: datasets.Dataset, settings: TableSettings) -> list[tuple[int, int, str]]:
    """Of each file the sign before decimals, as `table_columns.encode_numbers` takes it.

    Args:
        data: all rows.
        settings: may name it. Else it is a comma where fields are not separated by commas, and a column has numbers
            with one that can't be between thousands.
    """
    files = spans(data) or [(0, len(data), ",")]
    if settings.decimal:
        return [(start, stop, settings.decimal) for start, stop, _ in files]
    names = [name for name, feature in data.features.items() if kind_of_column(feature).endswith("string")]
    columns = [] if all(separator == "," for *_, separator in files) else [column_of(data, name) for name in names]
    found = []
    for start, stop, separator in files:
        given = [] if separator == "," else [texts(each[start:stop], settings.missing.split()) for each in columns]
        kinds = {commas(each) for each in given}
        found.append((start, stop, "," if "decimal" in kinds else "?" if "either" in kinds else "."))
    return found
