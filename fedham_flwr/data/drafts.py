"""A draft of a schema: what the columns of one site's table seem to hold, with what is to be looked at as comments."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from fedham_flwr.core.errors import UserError
from fedham_flwr.data.column_values import column_of, kind_of_texts
from fedham_flwr.data.columns import kind_of_column
from fedham_flwr.data.csv_places import place
from fedham_flwr.data.kinds.table_column import Column
from fedham_flwr.data.kinds.table_columns import as_words, encode, encode_numbers
from fedham_flwr.data.kinds.table_kinds import decimal_signs
from fedham_flwr.data.kinds.table_settings import TableSettings
from fedham_flwr.data.kinds.table_values import EPOCH, texts

if TYPE_CHECKING:
    import datasets

HEAD = """\
# A draft, out of {rows} rows of one site. Look through it before it goes to the others: what stands behind # is of this
# site's data (counts, lowest and highest values). All sites need the same file, as table.schema="schema.toml".
# kind is number, category, ordered (categories from low to high), boolean or date; what no line declares is no input.
"""
_FEW = 10  # whole numbers that may be codes
_MOST = 50  # words that may be categories
_LISTED = 8


def draft(data: datasets.Dataset, label: str, client: str, settings: TableSettings) -> str:
    """A schema in TOML.

    Args:
        data: all rows of the site.
        label: the column that is to be learned; empty: `label`, if there is one.
        client: the column that says whose each row is; empty: none.
        settings: how texts are read.

    Raises:
        UserError: a column is named that is not there.
    """
    for option, name in (("--label", label), ("--client-column", client)):
        if name and name not in data.features:
            raise UserError(f"{option} is '{name}', but the columns are {', '.join(data.features)}.")
    label = label or ("label" if "label" in data.features else "")
    names = [name for name in data.features if name not in (label, client)]
    parts = [HEAD.format(rows=len(data)), *(_column(data, name, settings) for name in names)]
    if label:
        parts.append(_label(data, label, settings))
    else:
        parts.append(
            '# No column is called label: name what is to be learned.\n# [label]\n# column = ""\n# classes = []\n'
        )
    return "\n".join(parts)


def _column(data: datasets.Dataset, name: str, settings: TableSettings) -> str:
    words = _words(data, name, settings)
    gaps = f"; {words.null_count} missing" if words.null_count else ""
    kind = _kind(data, name, settings)
    if kind == "number":
        return _number(data, name, settings, gaps)
    if kind == "date":
        days = encode(Column(name, kind="date"), column_of(data, name), str, settings.missing.split()).numbers[:, 0]
        span = [f"{np.datetime64(EPOCH, 's') + int(day * 86400)}" for day in (np.nanmin(days), np.nanmax(days))]
        return _table(name, {"kind": "date"}, [f"from {span[0]} to {span[1]}{gaps}"])
    if kind == "boolean":
        return _table(name, {"kind": "boolean"}, [f"{_counted(_counts(words))}{gaps}"])
    if kind == "list":
        return f"# {json.dumps(name, ensure_ascii=False)} holds lists, which a schema does not declare.\n"
    return _category(name, words, gaps)


def _kind(data: datasets.Dataset, name: str, settings: TableSettings) -> str:
    kind = kind_of_column(data.features[name])
    if kind.endswith("string"):
        return kind_of_texts(data, name, settings.missing.split())
    if kind.startswith(("timestamp", "date")):
        return "date"
    if kind == "bool":
        return "boolean"
    if kind.startswith(("int", "uint", "float", "null")):
        return "number"
    return "category" if kind == "ClassLabel" else "list"


def _words(data: datasets.Dataset, name: str, settings: TableSettings) -> Any:
    """The column as texts, null where a value is missing."""
    import pyarrow as pa

    given, feature = column_of(data, name), data.features[name]
    if kind_of_column(feature) == "ClassLabel":
        names = [None if code is None or code < 0 else feature.names[code] for code in given.to_pylist()]
        return pa.chunked_array([pa.array(names, pa.large_string())])
    if pa.types.is_nested(given.type):
        return given
    return texts(as_words(given), settings.missing.split())


def _number(data: datasets.Dataset, name: str, settings: TableSettings, gaps: str) -> str:
    column, given, missing = Column(name), column_of(data, name), settings.missing.split()
    if kind_of_column(data.features[name]).endswith("string"):
        signs = decimal_signs(data, settings)
        values = encode_numbers(column, given, partial(place, data), missing, signs).numbers[:, 0]
    else:
        values = encode(column, given, partial(place, data)).numbers[:, 0]
    there = values[~np.isnan(values)]
    if not len(there):
        return _table(name, {"kind": "number"}, ["no value at all"])
    different = np.unique(there)
    low, high = f"{there.min():g}", f"{there.max():g}"
    notes = [f"from {low} to {high}, {len(different)} different values{gaps}"]
    whole = bool((different == np.floor(different)).all())
    if whole and len(different) == len(there) > _FEW:
        return (
            f"# WARNING: every row has another whole number (an identifier?): left out\n# [columns.{_quoted(name)}]\n"
        )
    if whole and len(different) <= min(_FEW, len(there) / 4):
        codes = json.dumps([f"{value:g}" for value in different])
        notes.append(f'few whole numbers: if they are codes, kind = "category" and categories = {codes}')
    return _table(name, {"kind": "number"}, notes) + f'# range = [{low}, {high}]  # what can be\n# unit = ""\n'


def _category(name: str, words: Any, gaps: str) -> str:
    counts = _counts(words)
    some = ", ".join(json.dumps(word, ensure_ascii=False) for word in [*counts][:3])
    if len(counts) > _MOST or (len(counts) > _FEW and len(counts) > len(words) / 2):
        what = "every row another one: an identifier" if len(counts) == len(words) else "an identifier, or free text"
        note = f"# WARNING: {len(counts)} different texts in {len(words)} rows, such as {some} ({what}?): left out\n"
        return note + f"# [columns.{_quoted(name)}]\n"
    notes = [f"{_counted(counts)}{gaps}"]
    lower = [word.lower() for word in counts]
    if twice := sorted({word for word in counts if lower.count(word.lower()) > 1}):
        notes.append(f"WARNING: {', '.join(twice)} differ by case only")
    return _table(name, {"kind": "category", "categories": sorted(counts)}, notes)


def _label(data: datasets.Dataset, name: str, settings: TableSettings) -> str:
    words = _words(data, name, settings)
    counts, rows = _counts(words), len(words)
    gaps = f"; {words.null_count} rows have none" if words.null_count else ""
    if len(counts) > max(20, rows / 2):
        note = f"WARNING: {len(counts)} different values in {rows} rows: the row's number, or a value?{gaps}"
        return f'# {note}\n[label]\ncolumn = {_quoted(name)}\nkind = "value"\n'
    plain = {
        word.removesuffix(".0") if word.replace(".", "").isdigit() else word: count for word, count in counts.items()
    }
    order = sorted(plain, key=lambda word: (0, float(word), "") if word.isdigit() else (1, 0.0, word))
    if kind_of_column(data.features[name]) == "ClassLabel":
        order = list(data.features[name].names)
    classes = json.dumps(order, ensure_ascii=False)
    return (
        f"# {_counted(plain)}{gaps}; add the classes that this site lacks\n[label]\ncolumn = {_quoted(name)}\n"
        f'kind = "class"\nclasses = {classes}\n'
    )


def _counts(words: Any) -> dict[str, int]:
    """How often each word is there, the most frequent first."""
    import pyarrow.compute as pc

    counted = {
        each["values"]: each["counts"] for each in pc.value_counts(words).to_pylist() if each["values"] is not None
    }
    return dict(sorted(counted.items(), key=lambda item: (-item[1], item[0])))


def _counted(counts: Mapping[str, int]) -> str:
    some = ", ".join(f"{word} {count}" for word, count in [*counts.items()][:_LISTED])
    return some + (f" and {len(counts) - _LISTED} more" if len(counts) > _LISTED else "")


def _quoted(name: str) -> str:
    return json.dumps(name, ensure_ascii=False)


def _table(name: str, said: Mapping[str, Any], notes: Sequence[str]) -> str:
    comments = "".join(f"# {note}\n" for note in notes)
    keys = "".join(f"{key} = {json.dumps(value, ensure_ascii=False)}\n" for key, value in said.items())
    return f"{comments}[columns.{_quoted(name)}]\n{keys}"
