"""Targets that are no class: values (regression) and labels of which a sample has some, out of a data set's columns."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from fedham_flwr.core.errors import UserError
from fedham_flwr.data.column_values import column_of
from fedham_flwr.data.columns import Columns, is_number, kind_of_column, named, several, values_of
from fedham_flwr.data.csv_places import place
from fedham_flwr.data.kinds.table_column import Column
from fedham_flwr.data.kinds.table_columns import encode_numbers
from fedham_flwr.data.kinds.table_kinds import decimal_signs
from fedham_flwr.data.kinds.table_settings import TableSettings

if TYPE_CHECKING:
    import datasets

CLASSLESS = ("value", "multi-label")
"""Targets for which there are no classes to deal by."""
SEPARATORS = (";", "|", ",")
"""Between several labels in one text, such as "dog;cat"; one of them alone is a sample without any label."""
_LISTS = ("List", "LargeList", "Sequence")


def check(columns: Columns, what: str) -> None:
    """Refuse a target that data of a kind cannot have.

    Args:
        columns: with the setting `target`.
        what: the kind: images, a table or texts.

    Raises:
        UserError: the target is of other data.
    """
    wanted = ("class", *CLASSLESS, *(("next-token",) if what == "texts" else ()))
    if columns.target not in ("auto", *wanted):
        raise UserError(f"target is '{columns.target}', but the data set is {what}; wanted {' or '.join(wanted)}.")


def names_of(data: datasets.Dataset, columns: Columns, table: Sequence[str]) -> list[str]:
    """The columns of the targets.

    Args:
        data: all rows.
        columns: names the target's.
        table: columns that are inputs.

    Raises:
        UserError: no column is named, or one isn't there, is an input, or is there twice.
    """
    names = several(data, columns.label) or (["label"] if "label" in data.features else [])
    if not names:
        raise UserError(
            f"target is '{columns.target}' and label-column is empty; name the target's columns, with blanks between."
        )
    for number, name in enumerate(names):
        named(data, "label-column", name)
        if name in table:
            raise UserError(f"feature-column names '{name}', which is a label-column; leave it out.")
        if name in names[:number]:
            raise UserError(f"label-column names '{name}' twice; name each column once.")
    return names


def decode(
    data: datasets.Dataset, target: str, names: Sequence[str], folder: Path, settings: TableSettings
) -> dict[str, Any]:
    """Write the targets: `labels.npy`, float32 [N] or [N, k] of values, uint8 [N, k] of labels; their meta data.

    Args:
        data: all rows.
        target: value or multi-label.
        names: the columns.
        folder: exists.
        settings: how texts are read.

    Raises:
        UserError: a column holds something else.
    """
    if target == "value":
        np.save(folder / "labels.npy", _values(data, names, settings))
    elif len(names) == 1 and kind_of_column(data.features[names[0]]) in _LISTS:
        flags, classes, declared = _lists(data, names[0])
        np.save(folder / "labels.npy", flags)
        return {"classes": classes, "target": target, "declared": declared}
    elif len(names) == 1 and (texts := _texts(data, names[0])):
        flags, classes = _cut(texts)
        np.save(folder / "labels.npy", flags)
        return {"classes": classes, "target": target, "declared": False}
    else:
        np.save(folder / "labels.npy", _flags(data, names, settings))
    return {"classes": list(names), "target": target, "declared": True}


def _numbers(
    data: datasets.Dataset, names: Sequence[str], target: str, settings: TableSettings
) -> npt.NDArray[np.float32]:
    """float32 [N, k]: columns of numbers without gaps."""
    signs, found = decimal_signs(data, settings), []
    for name in names:
        kind = kind_of_column(data.features[name])
        if kind.endswith("string"):
            given, missing = column_of(data, name), settings.missing.split()
            numbers = encode_numbers(Column(name), given, partial(place, data), missing, signs).numbers[:, 0]
        elif is_number(data, name):
            numbers = values_of(data, name, "label-column")
        else:
            raise UserError(f"label-column '{name}' is of kind {kind}, but target={target} needs numbers.")
        with np.errstate(over="ignore"):
            found.append(numbers.astype(np.float32))
        if not np.isfinite(found[-1]).all():
            row = int(np.argmin(np.isfinite(found[-1])))
            raise UserError(
                f"label-column '{name}' is no finite number in {place(data, row)}, but every row needs a value."
            )
    return np.stack(found, axis=1)


def _values(data: datasets.Dataset, names: Sequence[str], settings: TableSettings) -> npt.NDArray[np.float32]:
    values = _numbers(data, names, "value", settings)
    return values[:, 0] if len(names) == 1 else values


def _flags(data: datasets.Dataset, names: Sequence[str], settings: TableSettings) -> npt.NDArray[np.uint8]:
    flags = _numbers(data, names, "multi-label", settings)
    if (strange := ~np.isin(flags, (0, 1))).any():
        row, column = map(int, np.argwhere(strange)[0])
        raise UserError(
            f"label-column '{names[column]}' has {flags[row, column]:g} in {place(data, row)}, but target=multi-label "
            "needs columns of 0 and 1, or one column of lists of classes."
        )
    return flags.astype(np.uint8)


def _texts(data: datasets.Dataset, name: str) -> list[str]:
    """The values of a column of texts that are names of labels; none if they are 0 and 1, or no texts."""
    if not kind_of_column(data.features[name]).endswith("string"):
        return []
    texts = [str(text).strip() for text in values_of(data, name, "label-column")]
    return [] if {*texts} <= {"0", "1", "0.0", "1.0"} else texts


def _cut(texts: Sequence[str]) -> tuple[npt.NDArray[np.uint8], list[str]]:
    """uint8 [N, k] of texts such as "dog;cat", and the k names; they are cut at the first of SEPARATORS that occurs."""
    sign = next((each for each in SEPARATORS if any(each in text for text in texts)), SEPARATORS[0])
    rows = [{part.strip() for part in text.split(sign)} - {""} for text in texts]
    names = sorted(set().union(*rows))
    flags = np.array([[name in row for name in names] for row in rows], dtype=np.uint8)
    return flags.reshape(len(rows), len(names)), names


def _lists(data: datasets.Dataset, name: str) -> tuple[npt.NDArray[np.uint8], list[str], bool]:
    """uint8 [N, k] of a column of lists, the k names, and whether the schema declares them."""
    inner = data.features[name].feature
    rows = data.select_columns([name]).with_format("arrow")[:].column(name).to_pylist()
    if empty := sum(row is None or None in row for row in rows):
        raise UserError(f"label-column '{name}' has {empty} empty rows, but every row needs a list of classes.")
    kind = kind_of_column(inner)
    if kind != "ClassLabel" and not kind.startswith(("int", "uint", "string", "large_string")):
        raise UserError(f"label-column '{name}' has lists of {kind}, but wanted class numbers, names or class labels.")
    names: list[Any] = (
        list(range(len(inner.names))) if kind == "ClassLabel" else sorted({v for row in rows for v in row})
    )
    places = {value: place for place, value in enumerate(names)}
    flags = np.zeros((len(rows), len(names)), dtype=np.uint8)
    for number, row in enumerate(rows):
        if strange := [value for value in row if value not in places]:
            raise UserError(f"label-column '{name}' has the class {strange[0]} in row {number}, which has no name.")
        flags[number, [places[value] for value in row]] = 1
    if not names:
        raise UserError(f"label-column '{name}' has only empty lists: there is nothing to learn.")
    return flags, list(inner.names) if kind == "ClassLabel" else [str(value) for value in names], kind == "ClassLabel"
