"""What Flower's records hold: named tensors as arrays, and numbers whose type is checked as they are read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from flwr.app import Array, ArrayRecord

from fedham_flwr.core.parameters import Params


def arrays(params: Mapping[str, torch.Tensor], serialised: dict[int, Array] | None = None) -> dict[str, Array]:
    """Named tensors, serialised.

    Args:
        params: the tensors.
        serialised: what is there already, by the tensor's identity, and is added to.
    """
    made = {} if serialised is None else serialised
    for tensor in params.values():
        if id(tensor) not in made:
            made[id(tensor)] = Array(tensor.numpy())
    return {name: made[id(tensor)] for name, tensor in params.items()}


def tensors_record(params: Mapping[str, torch.Tensor]) -> ArrayRecord:
    """Named tensors as a record."""
    return ArrayRecord(arrays(params))


def tensors(record: ArrayRecord) -> Params:
    """The inverse of `tensors_record`."""
    return {name: torch.from_numpy(array.numpy()) for name, array in record.items()}


def whole_number(value: object) -> int:
    """A whole number that a record holds.

    Raises:
        TypeError: it is something else.
    """
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{value!r} is not a whole number")
    return value


def number(value: object) -> float:
    """A number that a record holds.

    Raises:
        TypeError: it is something else.
    """
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{value!r} is not a number")
    return float(value)


def whole_numbers(value: object) -> tuple[int, ...]:
    """A list of whole numbers that a record holds.

    Raises:
        TypeError: it is something else.
    """
    if not isinstance(value, Sequence) or isinstance(value, str | bytes):
        raise TypeError(f"{value!r} is not a list of whole numbers")
    return tuple(whole_number(part) for part in value)
