"""Classes and owners: a column of texts, whole numbers or class labels -> codes and their names."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from fedham_flwr.core.errors import UserError
from fedham_flwr.data.columns import is_number, kind_of_column, values_of
from fedham_flwr.data.csv_places import place, selected
from fedham_flwr.data.kinds.table_values import texts

if TYPE_CHECKING:
    import datasets

log = logging.getLogger("fedham_flwr")

_SIMPLE = re.compile(r"u?int\d+|bool|(large_)?string")
_WHOLE = re.compile(r"[+-]?(0|[1-9]\d*)(\.0*)?", re.ASCII)
_ID = re.compile(r"\d+", re.ASCII)


def with_labels(
    data: datasets.Dataset,
    names: Sequence[str],
    unlabelled: str,
    missing: Sequence[str],
    declared: Sequence[str] = (),
) -> datasets.Dataset:
    """The rows that have a label, or all if each has one.

    Args:
        data: all rows.
        names: the columns of the label, of which each row needs all.
        unlabelled: the setting: refuse, or leave-out, which says how many are left out.
        missing: markers beside the usual ones, in columns of texts.
        declared: classes of a schema, which are no markers.

    Raises:
        UserError: a row has none, and the setting is refuse; or no row has one.
    """
    lacking = np.zeros(len(data), dtype=bool)
    for name in names:
        lacking |= _lacks(data, name, missing, declared)
    if not lacking.any():
        return data
    quoted, count = " ".join(names), int(lacking.sum())
    if unlabelled == "refuse":
        where = place(data, int(lacking.argmax()))
        raise UserError(
            f"label-column '{quoted}' has {count} empty rows, but every row needs a value; the first is {where}; "
            'table.unlabelled="leave-out" leaves them out.'
        )
    if lacking.all():
        raise UserError(f"label-column '{quoted}' has no value in any row.")
    log.warning("label-column '%s': %d of %d rows have no label, and are left out", quoted, count, len(data))
    return selected(data, np.flatnonzero(~lacking))


def _lacks(data: datasets.Dataset, name: str, missing: Sequence[str], declared: Sequence[str]) -> npt.NDArray[np.bool_]:
    import pyarrow.compute as pc

    column = data.select_columns([name]).with_format("arrow")[:].column(name)
    kind = kind_of_column(data.features[name])
    if kind.endswith("string"):
        column = texts(column, missing, declared)
    null: npt.NDArray[np.bool_] = pc.is_null(column, nan_is_null=True).to_numpy()
    if kind == "ClassLabel":
        null = null | (pc.fill_null(column, -1).to_numpy() < 0)
    return null


def label_codes(
    data: datasets.Dataset, column: str, declared: Sequence[str] = ()
) -> tuple[npt.NDArray[np.int64], list[str]]:
    """int64 [N] in 0..K-1, and the K names: those declared, those of a class-label column, else the sorted values.

    Args:
        data: all rows, each with a label.
        column: of the label.
        declared: the classes of a schema, in their order.

    Raises:
        UserError: a row has no label or another one than declared, or the column is of no kind that could be one.
    """
    if kind_of_column(data.features[column]) == "ClassLabel":
        labels, names = values_of(data, column, "label-column").astype(np.int64), list(data.features[column].names)
        if labels.min() < 0:
            count = int((labels < 0).sum())
            raise UserError(f"label-column '{column}' has {count} rows without a label; leave them out.")
    else:
        labels, names = codes_of(data, column, "label-column")
        if len(names) > 20 and len(names) > 0.5 * len(labels):
            log.warning(
                "label-column '%s' has %d classes in %d rows: is it the row's number? target=\"value\" learns values",
                column, len(names), len(labels),
            )  # fmt: skip
    return _declared(data, column, labels, names, declared) if declared else (labels, names)


def _declared(
    data: datasets.Dataset, column: str, labels: npt.NDArray[np.int64], names: list[str], declared: Sequence[str]
) -> tuple[npt.NDArray[np.int64], list[str]]:
    """The codes by the order of the classes that a schema declares."""
    lower = {name.lower(): name for name in declared}
    known = [name if name in declared else lower.get(name.lower(), "") for name in names]
    if strange := [code for code, name in enumerate(known) if not name]:
        row = int(np.isin(labels, strange).argmax())
        raise UserError(
            f"label-column '{column}' holds '{names[labels[row]]}' in {place(data, row)}; wanted, as the schema says, "
            f"one of {', '.join(declared)}."
        )
    return np.array([declared.index(name) for name in known], dtype=np.int64)[labels], list(declared)


def codes_of(data: datasets.Dataset, column: str, setting: str) -> tuple[npt.NDArray[np.int64], list[str]]:
    """int64 [N] in 0..K-1, and the K values, sorted, as text; numbers by their value, also where they are texts.

    Args:
        data: all rows, each with a value.
        column: its name.
        setting: that names it. Of labels, 1, 1.0 and "1" are the same; of clients, texts stay what they are.

    Raises:
        UserError: a row has no value, or the column holds neither whole numbers nor texts nor class labels.
    """
    kind = kind_of_column(data.features[column])
    values = values_of(data, column, setting) if kind == "ClassLabel" or _SIMPLE.fullmatch(kind) else None
    if values is None and kind.startswith("float"):
        floats = values_of(data, column, setting)
        values = floats.astype(np.int64) if np.array_equal(floats, np.floor(floats)) else None
    if values is None:
        advice = '; target="value" learns numbers' if setting == "label-column" and is_number(data, column) else ""
        raise UserError(
            f"{setting} '{column}' is of kind {kind}, but must hold integers, texts or class labels{advice}."
        )
    if kind.endswith("string"):
        return _codes_of_texts(data, column, setting, values)
    found, codes = np.unique(values, return_inverse=True)
    names: list[str] = (
        data.features[column].int2str(found.tolist()) if kind == "ClassLabel" else [str(value) for value in found]
    )
    return codes.astype(np.int64), names


def _codes_of_texts(
    data: datasets.Dataset, column: str, setting: str, values: npt.NDArray[Any]
) -> tuple[npt.NDArray[np.int64], list[str]]:
    words, codes = np.unique(np.array([str(value).strip() for value in values], dtype=object), return_inverse=True)
    names = [str(word) for word in words]
    if setting == "label-column":
        if all(_WHOLE.fullmatch(name) for name in names):
            names = [str(int(float(name))) if len(name) < 16 else name.partition(".")[0] for name in names]
        elif is_number(data, column):
            row = next(i for i, value in enumerate(values) if not _WHOLE.fullmatch(str(value).strip()))
            raise UserError(
                f"label-column '{column}' holds '{values[row]}' in {place(data, row)}, which is no class, but must "
                'hold integers, texts or class labels; target="value" learns numbers.'
            )
    whole = setting == "label-column" and all(_WHOLE.fullmatch(name) for name in names)
    numeric = whole or all(_ID.fullmatch(name) for name in names)
    ordered = sorted(dict.fromkeys(names), key=lambda name: (int(name), name) if numeric else (0, name))
    places = {name: at for at, name in enumerate(ordered)}
    return np.array([places[name] for name in names], dtype=np.int64)[codes], ordered
