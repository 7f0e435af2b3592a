"""Tables: what a client's columns are, its scaling, and the inputs that a network is fed of raw rows.

A client's scaling goes into its model file, and `read_scaling` makes inputs of new rows by it; `table_decoding` makes
it. Shape letters: b rows, f numbers of a row: one for a column of numbers, K for a class label of K names, of which one
is 1.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
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

KEY = "table"
"""Of the scaling in the header of a model file."""
FARTHEST = 10.0
"""No standardised value is further from 0: a column that is constant in training may be anything later."""

Numbers = npt.NDArray[np.float64]
Indices = npt.NDArray[np.int64]


class ByName(Protocol):
    """Columns by name, such as a dictionary or a pandas.DataFrame."""

    def __getitem__(self, name: str, /) -> Any:
        """The values of a column."""
        ...


Rows = ByName | Sequence[Mapping[str, Any]] | npt.NDArray[Any]
"""Raw rows: columns by name, a mapping from name to value for each row, or an array [b, columns]."""


@dataclass(frozen=True)
class Column:
    """A column of a table; `names` are those of a class label, none of a number."""

    name: str
    names: tuple[str, ...] = ()

    @property
    def width(self) -> int:
        """Into how many numbers it goes."""
        return len(self.names) or 1


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
        """Of the columns; of a class label with what its numbers mean."""
        return tuple("=".join((column.name, *column.names)) for column in self.columns)

    def label(self) -> dict[str, str]:
        """What `read_scaling` finds in the header of a model file."""
        return {KEY: json.dumps(asdict(self))}


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


def columns_of(described: Iterable[Mapping[str, Any]]) -> tuple[Column, ...]:
    """Columns as JSON has them."""
    return tuple(Column(column["name"], tuple(column["names"])) for column in described)


def spread(numbers: Numbers, column: Column) -> Numbers:
    """[b] -> [b, width]: numbers as they are, class labels (-1: missing) as a 1 in the place of their name.

    Raises:
        UserError: a class label that has no name.
    """
    if not column.names:
        return numbers[:, None]
    known = np.where(numbers == -1, np.nan, numbers)
    if wrong := sorted(set(known[~np.isnan(known)].tolist()) - set(range(len(column.names)))):
        raise UserError(f"column '{column.name}' has the value {wrong[0]:g}, but {len(column.names)} class labels.")
    return np.where(np.isnan(known)[:, None], np.nan, known[:, None] == np.arange(len(column.names)))


def narrow(numbers: Numbers, column: Column) -> npt.NDArray[np.float32]:
    """The numbers of a column as 32-bit floats.

    Raises:
        UserError: one is infinite, or is as such a float.
    """
    with np.errstate(over="ignore"):
        narrowed = numbers.astype(np.float32)
    if (infinite := np.isinf(narrowed)).any():
        raise UserError(
            f"column '{column.name}' is infinite in row {int(infinite.any(axis=1).argmax())} (or beyond 3.4e38): give "
            "it a number, or leave it empty."
        )
    return narrowed


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
        numbers = np.array([_number(value, column) for value in _values(rows, place, column)], dtype=np.float64)
    except (KeyError, IndexError) as error:
        raise UserError(f"the rows have no column '{column.name}': wanted all columns that the model has.") from error
    except (TypeError, ValueError) as error:
        wanted = f"one of {', '.join(column.names)}, or its number" if column.names else "numbers, of each row one"
        raise UserError(f"column '{column.name}' of the rows: {error}; wanted {wanted}.") from error
    return narrow(spread(numbers, column), column)  # as narrow as stored values, so that inputs are the same bits


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
