"""Tables: what a client's columns are, its scaling, and the inputs that a network is fed of raw rows.

A client's scaling goes into its model file, and `read_scaling` makes inputs of new rows by it; `table_decoding` makes
it. Shape letters: b rows, f numbers of a row: one for a column of numbers, K for a class label of K names, of which one
is 1, and so on, as `Column.width` says.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from torch import Tensor

from fedham_flwr.core.errors import UserError
from fedham_flwr.data.batches import with_gaps
from fedham_flwr.data.kinds.table_column import Column, Numbers, columns_of, narrow, spread

__all__ = ["FARTHEST", "KEY", "Column", "Rows", "Scaling", "columns_of", "read_scaling", "scale"]

KEY = "table"
"""Of the scaling in the header of a model file."""
FARTHEST = 10.0
"""No standardised value is further from 0: a column that is constant in training may be anything later."""

Indices = npt.NDArray[np.int64]


class ByName(Protocol):
    """Columns by name, such as a dictionary or a pandas.DataFrame."""

    def __getitem__(self, name: str, /) -> Any:
        """The values of a column."""
        ...


Rows = ByName | Sequence[Mapping[str, Any]] | npt.NDArray[Any]
"""Raw rows: columns by name, a mapping from name to value for each row, or an array [b, columns]."""


@dataclass(frozen=True)
class Scaling:
    """How a client's raw rows become inputs.

    Attributes:
        columns: in the order of the inputs.
        mean: F numbers, of the client's training split; 0 where it has no value.
        std: F numbers; 1 where the training split has one value or none.
    """

    columns: tuple[Column, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def inputs(self, rows: Rows) -> Float[Tensor, "b 2 f"]:
        """What the network is fed: the standardised values with 0 for those that are missing, then 1 where one is.

        Args:
            rows: a pandas.DataFrame or other mapping from a column's name to its values, a sequence of mappings from
                names to values, or an array [b, columns] in the order of `columns`. None and NaN are missing; a class
                label is given by its name or its number.

        Raises:
            UserError: a column is not there, or holds something else.
        """
        if isinstance(rows, Sequence) and not all(isinstance(row, Mapping) for row in rows):
            rows = np.array(rows, dtype=object)  # lists of values, in the order of an array's
        if isinstance(rows, np.ndarray) and rows.shape[1:] != (len(self.columns),):
            names = ", ".join(column.name for column in self.columns)
            raise UserError(
                f"the rows are an array of shape {rows.shape}, wanted (rows, {len(self.columns)}): {names}."
            )
        raw = [_raw(rows, place, column) for place, column in enumerate(self.columns)]
        scaled = scale(np.concatenate(raw, axis=1), np.array(self.mean), np.array(self.std))
        return with_gaps(torch.from_numpy(scaled))

    @property
    def names(self) -> tuple[str, ...]:
        """Of the columns, with what their numbers mean."""
        return tuple(column.meaning for column in self.columns)

    def label(self) -> dict[str, str]:
        """What `read_scaling` finds in the header of a model file."""
        columns = [column.described() for column in self.columns]
        return {KEY: json.dumps({"columns": columns, "mean": self.mean, "std": self.std})}


def read_scaling(path: str | Path) -> Scaling:
    """The scaling that belongs to a client's model, out of the file that a run leaves.

    Args:
        path: `<run>/model/<client>.safetensors`.

    Raises:
        UserError: there is no such file, or its model is not one of tables.
    """
    try:
        with safe_open(path, framework="pt") as file:
            written = (file.metadata() or {}).get(KEY)
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"{path} cannot be read as a model ({error}); wanted a file model/<client>.safetensors"
        ) from error
    if written is None:
        raise UserError(f"{path} says nothing of a table's columns: wanted the model of a client that has a table")
    given = json.loads(written)
    return Scaling(columns_of(given["columns"]), tuple(given["mean"]), tuple(given["std"]))


def scale(values: npt.NDArray[Any], mean: Numbers, std: Numbers) -> npt.NDArray[np.float32]:
    """(values - mean) / std, no further from 0 than `FARTHEST`; NaN stays.

    Args:
        values: [b, F].
        mean: [F].
        std: [F], positive.
    """
    return np.clip((values - mean) / std, -FARTHEST, FARTHEST).astype(np.float32)


# ---- raw rows --------------------------------------------------------------------------------------------------------


def _raw(rows: Rows, place: int, column: Column) -> npt.NDArray[np.float32]:
    """[b, width]: the values of one column of raw rows."""
    try:
        values = [*_values(rows, place, column)]
    except (KeyError, IndexError) as error:
        raise UserError(f"the rows have no column '{column.name}': wanted all columns that the model has.") from error
    if column.kind not in ("number", "class-label"):
        return narrow(_encoded(values, column), column)
    try:
        numbers = np.array([_number(value, column) for value in values], dtype=np.float64)
    except (TypeError, ValueError) as error:
        wanted = f"one of {', '.join(column.names)}, or its number" if column.names else "numbers, of each row one"
        raise UserError(f"column '{column.name}' of the rows: {error}; wanted {wanted}.") from error
    return narrow(spread(numbers, column), column)  # as narrow as stored values, so that inputs are the same bits


def _encoded(values: list[Any], column: Column) -> Numbers:
    """[b, width]: of a column of words, dates or lists, as of a file's."""
    import pyarrow as pa

    from fedham_flwr.data.kinds.table_columns import encode

    if column.kind != "list":
        values = [None if _is_nothing(value) else _word(value) for value in values]
    chunked = pa.chunked_array([pa.array(values, pa.list_(pa.float64()) if column.kind == "list" else pa.string())])
    return encode(column, chunked, lambda row: f"row {row}").numbers


def _is_nothing(value: Any) -> bool:
    return value is None or bool(value != value)  # noqa: PLR0124 - NaN and pandas' NaT differ from themselves


def _word(value: Any) -> str:
    whole = isinstance(value, float | np.floating) and float(value).is_integer()
    return str(int(value)) if whole else str(value)


def _values(rows: Rows, place: int, column: Column) -> Any:
    if isinstance(rows, np.ndarray):
        return rows[:, place]
    if isinstance(rows, Sequence):
        return [row[column.name] for row in rows]
    values: Any = rows[column.name]
    # pandas has marks of its own for what is missing, which are no numbers.
    return values.astype(object).where(values.notna(), None) if hasattr(values, "notna") else values


def _number(value: Any, column: Column) -> float:
    if value is None:
        return float("nan")
    if column.names and isinstance(value, str):
        return float(column.names.index(value))
    return float(value)
