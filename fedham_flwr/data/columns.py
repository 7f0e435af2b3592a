"""Which columns of a data set are the samples, the labels and the clients, and what they hold, as numbers."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from fedham_flwr.core.errors import UserError

if TYPE_CHECKING:
    import datasets

ALONE = ("Image", "string", "large_string")
"""Kinds of a column that is a data set's samples by itself; columns of numbers make a table."""
_SIMPLE = re.compile(r"u?int\d+|bool|(large_)?string")
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


def table_columns(data: datasets.Dataset, columns: Columns) -> list[str]:
    """The columns of a table, as `feature` names them, with blanks between; none if it names an image or text column.

    Raises:
        UserError: one of them isn't there, is there twice, holds no numbers, or is the client column.
    """
    names = several(data, columns.feature)
    if len(names) == 1 and (names[0] not in data.features or kind_of_column(data.features[names[0]]) in ALONE):
        return []
    for number, name in enumerate(names):
        if name not in data.features:
            raise UserError(f"feature-column names '{name}', {_instead_of(name, data)}.")
        if name in names[:number]:
            raise UserError(f"feature-column names '{name}' twice; name each column once.")
        if name == columns.client:
            raise UserError(f"feature-column names '{name}', which is the client-column: it is the same in all rows.")
        _check_number(name, kind_of_column(data.features[name]))
    return names


def several(data: datasets.Dataset, setting: str) -> list[str]:
    """The columns that a setting names, with blanks between; a name with blanks of its own is one column."""
    return [setting] if setting in data.features else setting.split()


def is_number(data: datasets.Dataset, column: str) -> bool:
    """Whether a column holds numbers: integers, floats, truth values."""
    kind = kind_of_column(data.features[column])
    return bool(_NUMBER.fullmatch(kind)) and kind not in ("null", "ClassLabel")


def _check_number(name: str, kind: str) -> None:
    if kind in ALONE[1:]:
        raise UserError(
            f"feature-column names '{name}', which holds texts, but a table's columns must be numbers: write them as "
            "numbers, or as class labels (datasets.ClassLabel) with the same names at all clients."
        )
    if not _NUMBER.fullmatch(kind):
        raise UserError(
            f"feature-column names '{name}' of kind {kind}, but must name one column of {', '.join(ALONE)}, or columns "
            "of numbers and class labels, with blanks between."
        )


# ---- labels and clients ----------------------------------------------------------------------------------------------


def find_label(data: datasets.Dataset, column: str) -> str:
    """The column named by the setting, else the only class-label column, else the one called "label".

    Raises:
        UserError: it isn't there, or can't be told from others.
    """
    if column:
        return named(data, "label-column", column)
    if "ClassLabel" not in map(kind_of_column, data.features.values()) and "label" in data.features:
        return "label"
    return _the_only("label-column", "ClassLabel", data)


def find_label_of_table(data: datasets.Dataset, columns: Columns, table: Sequence[str]) -> str:
    """As `find_label` among the columns that are neither the table's nor the clients'; if several, "label".

    Raises:
        UserError: it isn't there, can't be told from others, or is one of the table's.
    """
    if columns.label:
        if columns.label in table:
            raise UserError(f"feature-column names '{columns.label}', which is the label-column; leave it out.")
        return named(data, "label-column", columns.label)
    rest = [name for name in data.features if name not in (*table, columns.client)]
    labels = [name for name in rest if kind_of_column(data.features[name]) == "ClassLabel"]
    if len(labels) == 1:
        return str(labels[0])
    return "label" if "label" in rest else _the_only("label-column", "ClassLabel", data)


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


def label_codes(data: datasets.Dataset, column: str) -> tuple[npt.NDArray[np.int64], list[str]]:
    """int64 [N] in 0..K-1, and the K names: those of a class-label column, else the sorted values.

    Raises:
        UserError: a row has no label, or the column is of no kind that could be one.
    """
    if kind_of_column(data.features[column]) != "ClassLabel":
        return codes_of(data, column, "label-column")
    labels = values_of(data, column, "label-column").astype(np.int64)
    if labels.min() < 0:
        raise UserError(f"label-column '{column}' has {int((labels < 0).sum())} rows without a label; leave them out.")
    return labels, list(data.features[column].names)


def codes_of(data: datasets.Dataset, column: str, setting: str) -> tuple[npt.NDArray[np.int64], list[str]]:
    """int64 [N] in 0..K-1, and the K values, sorted, as text.

    Raises:
        UserError: a row has no value, or the column holds neither integers nor texts nor class labels.
    """
    kind = kind_of_column(data.features[column])
    if kind != "ClassLabel" and not _SIMPLE.fullmatch(kind):
        advice = '; target="value" learns numbers' if setting == "label-column" and is_number(data, column) else ""
        raise UserError(
            f"{setting} '{column}' is of kind {kind}, but must hold integers, texts or class labels{advice}."
        )
    values, codes = np.unique(values_of(data, column, setting), return_inverse=True)
    names: list[str] = (
        data.features[column].int2str(values.tolist()) if kind == "ClassLabel" else [str(value) for value in values]
    )
    return codes.astype(np.int64), names


def values_of(data: datasets.Dataset, column: str, setting: str) -> npt.NDArray[Any]:
    """The values of a column, [N].

    Raises:
        UserError: a row has none.
    """
    values = data.select_columns([column]).with_format("arrow")[:].column(column)
    if values.null_count:
        raise UserError(f"{setting} '{column}' has {values.null_count} empty rows, but every row needs a value.")
    found: npt.NDArray[Any] = values.to_numpy()
    return found
