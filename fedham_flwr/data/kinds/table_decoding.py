"""Tables: columns of numbers, with gaps -> one array, and each client's rows by its own scaling.

Two steps, each kept in the cache. `decode` depends on the source and its columns alone: float32 [N, F], NaN where a
value is missing. `standardise` depends on who has what: each client's rows by the mean and the standard deviation of
its own training split, so that nothing about data leaves it, as in FLamby (du Terrail et al., NeurIPS 2022).
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from fedham_flwr.core.errors import UserError
from fedham_flwr.data.column_values import column_of
from fedham_flwr.data.columns import kind_of_column
from fedham_flwr.data.csv_places import place
from fedham_flwr.data.kinds.table import Indices, scale
from fedham_flwr.data.kinds.table_column import Column, Numbers, columns_of, narrow
from fedham_flwr.data.kinds.table_columns import Encoded, encode_numbers
from fedham_flwr.data.kinds.table_columns import encode as encode_column
from fedham_flwr.data.kinds.table_kinds import decimal_signs
from fedham_flwr.data.kinds.table_settings import AS_FOUND, TableSettings

if TYPE_CHECKING:
    import datasets

log = logging.getLogger("fedham_flwr")


def check_node(path: str, meta: Mapping[str, Any]) -> None:
    """At a node that has data of its own, a class or a category must not depend on which others it has.

    Args:
        path: of its data.
        meta: what the `meta.json` of its folder says: `classes`, their names; `declared`, whether a schema names them;
            `found`, columns whose categories are those of its rows.

    Raises:
        UserError: the classes were found, and are neither 0, 1, ... without a gap nor both truth values; or there are
            columns whose categories were found.
    """
    classes, declared = meta["classes"], meta["declared"]
    if meta.get("found"):
        raise UserError(
            f'table.categories="found" takes the words of {path} alone for the categories of {meta["found"][0]}, which '
            'other clients may lack: name them in a schema (table.schema), or set table.categories="shared".'
        )
    if not declared and list(classes) not in ([str(i) for i in range(len(classes))], ["False", "True"]):
        raise UserError(
            f"the label-column of {path} holds {', '.join(classes[:10])}, whose class numbers would depend on which of "
            "them this client has: name its classes in a schema (table.schema), make it a class label "
            "(datasets.ClassLabel) with the same names at all clients, or 0, 1, ... without a gap."
        )


# ---- decoding --------------------------------------------------------------------------------------------------------


def decode(data: datasets.Dataset, columns: Sequence[Column], path: Path, settings: TableSettings = AS_FOUND) -> None:
    """Write float32 [N, F], NaN where a value is missing, to a .npy file; what had to be understood is said.

    Args:
        data: all rows.
        columns: what they hold.
        path: to write to.
        settings: how texts are read.

    Raises:
        UserError: a value isn't what its column holds, or is infinite as a 32-bit float.
    """
    np.save(path, features(data, columns, settings))


def encode(rows: datasets.Dataset, recipe: Mapping[str, Any]) -> npt.NDArray[np.float32]:
    """Raw rows as they are stored: float32 [n, F], scaled if the recipe has a client's scaling.

    Args:
        rows: with the columns of the recipe, in any order, of texts or of types.
        recipe: `columns` as JSON has them; `missing`, markers of what is missing; and a client's `scaling`, with `mean`
            and `std`, or none for rows before scaling.

    Raises:
        UserError: a column isn't there, or a value isn't what it holds.
    """
    columns = columns_of(recipe["columns"])
    if lacking := [column.name for column in columns if column.name not in rows.features]:
        raise UserError(
            f"the rows lack the column{'s' if lacking[1:] else ''} {', '.join(map(repr, lacking))}, which the model "
            f"has; theirs are {', '.join(rows.features)}."
        )
    written = TableSettings(decimal=recipe.get("decimal", ""), missing=" ".join(recipe.get("missing", ())))
    values = features(rows, columns, written)
    scaling = recipe.get("scaling")
    return scale(values, np.array(scaling["mean"]), np.array(scaling["std"])) if scaling else values


def features(data: datasets.Dataset, columns: Sequence[Column], settings: TableSettings) -> npt.NDArray[np.float32]:
    """The columns of all rows before scaling, float32 [n, F]; what had to be understood is said.

    Args:
        data: all rows.
        columns: what they hold.
        settings: how texts are read.

    Raises:
        UserError: a value isn't what its column holds, or is infinite as a 32-bit float.
    """

    def where(row: int) -> str:
        return place(data, row)

    found = []
    signs, missing = decimal_signs(data, settings), settings.missing.split()
    for column in columns:
        given = _as_declared(data, column)
        if column.kind == "number" and str(given.type).endswith("string"):
            encoded = encode_numbers(column, given, where, missing, signs)
        else:
            encoded = encode_column(column, given, where, missing)
        _tell(column, encoded)
        found.append(narrow(encoded.numbers, column, where))
    return np.concatenate(found, axis=1)


def _as_declared(data: datasets.Dataset, column: Column) -> Any:
    """A column; of class labels that a schema takes for words, the names."""
    import pyarrow as pa

    given, feature = column_of(data, column.name), data.features[column.name]
    if kind_of_column(feature) != "ClassLabel" or column.kind == "class-label":
        return given
    names = [None if code is None or code < 0 else feature.names[code] for code in given.to_pylist()]
    return pa.chunked_array([pa.array(names, pa.string())])


def _tell(column: Column, encoded: Encoded) -> None:
    if encoded.notes:
        log.warning("column '%s': %s", column.name, "; ".join(encoded.notes))
    if encoded.unknown:
        log.warning("column '%s' has %s", column.name, _unknown(encoded.unknown))


def _unknown(words: Mapping[str, int]) -> str:
    """Words that are no categories, each with its rows, and what becomes of them."""
    told = [f"{word} in {count} row{'s' if count > 1 else ''}" for word, count in [*words.items()][:10]]
    if (more := len(words) - len(told)) > 0:
        told.append(f"{more} other word{'s' if more > 1 else ''}")
    if len(words) == 1:
        return f"{told[0]}, which is none of its categories: it counts as another word"
    return f"{', '.join(told[:-1])} and {told[-1]}, which are none of its categories: they count as another word"


# ---- scaling ---------------------------------------------------------------------------------------------------------


def standardise(values: npt.NDArray[np.float32], clients: Iterable[tuple[Indices, Indices]], folder: Path) -> None:
    """Write all rows, each by its client's scaling: `features.npy`, float32 [N, F]; NaN where nobody has the row.

    The scaling is written too: `scaling.npy`, float64 [clients, 2, F], means and standard deviations.

    Args:
        values: [N, F], NaN where missing.
        clients: for each one the numbers of its rows, and of those of them that are for training.
        folder: exists.
    """
    scaled, scaling = np.full(values.shape, np.nan, dtype=np.float32), []
    for rows, train in clients:
        mean, std = statistics(values[train].astype(np.float64))
        scaled[rows] = scale(values[rows], mean, std)
        scaling.append(np.stack([mean, std]))
    np.save(folder / "features.npy", scaled)
    np.save(folder / "scaling.npy", np.stack(scaling))


def statistics(values: Numbers) -> tuple[Numbers, Numbers]:
    """Mean and standard deviation of what is there in each column, [F] each.

    Args:
        values: [n, F], NaN where missing. A column that is constant has standard deviation 1, and mean 0 if it is
            missing altogether.
    """
    there = ~np.isnan(values)
    count = np.maximum(there.sum(axis=0), 1)
    mean = np.where(there, values, 0.0).sum(axis=0) / count
    std = np.sqrt((np.where(there, values - mean, 0.0) ** 2).sum(axis=0) / count)
    low = np.where(there, values, np.inf).min(axis=0, initial=np.inf)
    high = np.where(there, values, -np.inf).max(axis=0, initial=-np.inf)
    # Told by the values themselves: the mean of equal numbers may be off by a bit, and the deviation not 0 then.
    return np.where(low == high, low, mean), np.where(low < high, std, 1.0)
