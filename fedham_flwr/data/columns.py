"""Which columns of a data set are the samples, the labels and the clients, and what they hold, as numbers."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy.typing as npt

from fedham_flwr.core.errors import UserError
from fedham_flwr.data.column_values import column_of, kind_of_texts, mostly_numbers
from fedham_flwr.data.csv_places import spans

if TYPE_CHECKING:
    import datasets

ALONE = ("Image", "string", "large_string")
"""Kinds of a column that is a data set's samples by itself; columns of numbers make a table."""
_LISTS = ("List", "LargeList", "Sequence")
_DATE = re.compile(r"timestamp|date")
_NUMBER = re.compile(r"u?int\d+|float\d+|bool|null|ClassLabel")  # null: a column without any value


@dataclass(frozen=True)
class Columns:
    """The columns asked for by name; empty: found by their type (client: none). `feature` may name several.

    So may `label`, where `target` is value or multi-label.
    """

    feature: str = ""
    label: str = ""
    client: str = ""
    target: str = "auto"


def kind_of_column(feature: Any) -> str:
    """The kind of a column by its declaration in the schema: Image, ClassLabel, float32, string ..."""
    name = type(feature).__name__
    return str(feature.dtype) if name == "Value" else name


def named(data: datasets.Dataset, setting: str, column: str) -> str:
    """The column that a setting names.

    Raises:
        UserError: there is none of that name.
    """
    if column not in data.features:
        raise UserError(f"{setting} is '{column}', {_instead_of(column, data)}.")
    return column


def _instead_of(name: str, data: datasets.Dataset) -> str:
    """What to say of a column that isn't there."""
    advice = "; between the names of columns are blanks, no commas" if "," in name else ""
    if not advice and (blank := next((each for each in data.features if " " in each and name in each.split()), "")):
        advice = f"; a name with blanks needs quotes: '{blank}'"
    return f"but the columns are {_listed(data.features)}{advice}"


def _listed(features: Any) -> str:
    return ", ".join(f"{name} ({kind_of_column(feature)})" for name, feature in features.items())


# ---- samples ---------------------------------------------------------------------------------------------------------


def find_feature(data: datasets.Dataset, columns: Columns) -> str:
    """The column of images or texts: the one named, else the only image column, else the one called "text".

    Raises:
        UserError: it isn't there, or can't be told from others.
    """
    if columns.feature:
        return named(data, "feature-column", columns.feature)
    kinds = {name: kind_of_column(feature) for name, feature in data.features.items()}
    if "Image" not in kinds.values():
        if kinds.get("text") in ALONE:
            return "text"
        used = ("label", columns.label, columns.client)
        numbers = [name for name, kind in kinds.items() if _NUMBER.fullmatch(kind) and name not in used]
        if numbers:
            raise UserError(
                "set feature-column: the data set has neither images nor a column text; name the columns that predict "
                f"the label, with blanks between, some of {_listed({name: data.features[name] for name in numbers})}."
            )
    return _the_only("feature-column", "Image", data)


def table_columns(data: datasets.Dataset, columns: Columns, declared: Sequence[str] = ()) -> list[str]:
    """The columns of a table, as `feature` names them, with blanks between; none if it names an image or text column.

    Args:
        data: all rows.
        columns: of the settings; `*` or `all` are all but those of the label and the client, `-name` leaves one out.
        declared: the columns of a schema, which are taken where none is named.

    Raises:
        UserError: one of them isn't there, is there twice, can't be a table's, or is the client column.
    """
    names = _all_but(data, columns) if _STAR & set(columns.feature.split()) else several(data, columns.feature)
    names = names or [*declared]
    if len(names) == 1 and not declared and (names[0] not in data.features or not _is_table(data, names[0])):
        return []
    for number, name in enumerate(names):
        if name not in data.features:
            said = "feature-column names" if columns.feature else "table.schema declares"
            raise UserError(f"{said} '{name}', {_instead_of(name, data)}.")
        if name in names[:number]:
            raise UserError(f"feature-column names '{name}' twice; name each column once.")
        if name == columns.client:
            raise UserError(f"feature-column names '{name}', which is the client-column: it is the same in all rows.")
        if declared and name not in declared:
            raise UserError(f"feature-column names '{name}', which table.schema does not declare.")
        _check_kind(name, data.features[name])
    return names


_STAR = {"*", "all"}


def _all_but(data: datasets.Dataset, columns: Columns) -> list[str]:
    """All columns but those of the label and the client, and those that are left out by a - before their name."""
    label = several(data, columns.label) or [find_label_of_table(data, columns, ())]
    given = _words(columns.feature)
    out = [name[1:] for name in given if name.startswith("-")]
    more = [name for name in given if name not in _STAR and not name.startswith("-")]
    for name in (*out, *more):
        if name not in data.features:
            raise UserError(f"feature-column names '{name}', {_instead_of(name, data)}.")
    # By their names: in the files of other sites they may stand in another order.
    return sorted(name for name in data.features if name not in (*label, columns.client, *out))


def _is_table(data: datasets.Dataset, name: str) -> bool:
    """Whether one column alone is a table: texts are one where a .csv file holds numbers, truth values or dates."""
    kind = kind_of_column(data.features[name])
    if kind in ALONE[1:] and spans(data):
        return bool(kind_of_texts(data, name)) or mostly_numbers(data, name)
    return kind not in ALONE


def several(data: datasets.Dataset, setting: str) -> list[str]:
    """The columns that a setting names, with blanks between; one that has blanks itself stands in quotes, or alone."""
    return [setting] if setting in data.features else _words(setting)


def _words(setting: str) -> list[str]:
    found = re.findall(r"(-?)(?:'([^']*)'|\"([^\"]*)\"|(\S+))", setting)
    return [minus + (single or double or bare) for minus, single, double, bare in found]


def is_number(data: datasets.Dataset, column: str) -> bool:
    """Whether a column holds numbers: integers, floats, truth values, or texts that mean numbers."""
    kind = kind_of_column(data.features[column])
    if kind in ALONE[1:]:
        return kind_of_texts(data, column) == "number"
    return bool(_NUMBER.fullmatch(kind)) and kind not in ("null", "ClassLabel")


def _check_kind(name: str, feature: Any) -> None:
    kind = kind_of_column(feature)
    inner = kind_of_column(feature.feature) if kind in _LISTS else ""
    if not (_NUMBER.fullmatch(kind) or _DATE.match(kind) or kind in ALONE[1:] or _NUMBER.fullmatch(inner)):
        raise UserError(
            f"feature-column names '{name}' of kind {kind}, but must name one column of {', '.join(ALONE)}, or columns "
            "of numbers, words, dates, class labels and lists of numbers, with blanks between."
        )


# ---- labels and clients ----------------------------------------------------------------------------------------------


def find_label(data: datasets.Dataset, column: str) -> str:
    """The column named by the setting, else the only class-label column, else the one called "label".

    Raises:
        UserError: it isn't there, or can't be told from others.
    """
    if column:
        return named(data, "label-column", _one(data, column))
    if "ClassLabel" not in map(kind_of_column, data.features.values()) and "label" in data.features:
        return "label"
    return _the_only("label-column", "ClassLabel", data)


def find_label_of_table(data: datasets.Dataset, columns: Columns, table: Sequence[str]) -> str:
    """As `find_label` among the columns that are neither the table's nor the clients'; if several, "label".

    Raises:
        UserError: it isn't there, can't be told from others, or is one of the table's.
    """
    if columns.label:
        label = _one(data, columns.label)
        if label in table:
            raise UserError(f"feature-column names '{label}', which is the label-column; leave it out.")
        return named(data, "label-column", label)
    rest = [name for name in data.features if name not in (*table, columns.client)]
    labels = [name for name in rest if kind_of_column(data.features[name]) == "ClassLabel"]
    if len(labels) == 1:
        return str(labels[0])
    return "label" if "label" in rest else _the_only("label-column", "ClassLabel", data)


def _one(data: datasets.Dataset, setting: str) -> str:
    """The column that a setting names, in quotes or without; blanks without quotes belong to its name."""
    words = several(data, setting)
    return words[0] if len(words) == 1 else setting


def _the_only(setting: str, kind: str, data: datasets.Dataset) -> str:
    found = [name for name, feature in data.features.items() if kind_of_column(feature) == kind]
    if len(found) != 1:
        listed = _listed(data.features)
        count = f"the data set has {len(found)} columns of kind {kind}, among {listed}"
        none = f"the data set has no column of kind {kind}, so that it must be named, one of {listed}"
        only = all(kind_of_column(feature) == "Image" for feature in data.features.values())
        advice = "; pictures need a folder for each class, and dataset names the folder of these" if only else ""
        raise UserError(f"set {setting}: {count if found else none}{advice}.")
    return str(found[0])


def values_of(data: datasets.Dataset, column: str, setting: str) -> npt.NDArray[Any]:
    """The values of a column, [N].

    Raises:
        UserError: a row has none.
    """
    values = column_of(data, column)
    if values.null_count:
        raise UserError(f"{setting} '{column}' has {values.null_count} empty rows, but every row needs a value.")
    found: npt.NDArray[Any] = values.to_numpy()
    return found
