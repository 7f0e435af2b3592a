"""Trees of tensors for another process: equal shapes as one array, and a tensor that several trees share once.

Pickled one by one, each row of a cohort's tensors would take all of them along.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fedham_flwr.core.parameters import Params


class Packed(NamedTuple):
    """Several trees.

    Attributes:
        arrays: tensors of one shape and type, stacked [n, ...].
        names: of each tree, its tensors' names.
        places: of each tree, where its tensors are: array and row, int64 [tensors, 2].
    """

    arrays: list[npt.NDArray[Any]]
    names: list[tuple[str, ...]]
    places: list[npt.NDArray[np.int64]]


def pack(trees: Sequence[Params]) -> Packed:
    """Several trees as a few arrays.

    Args:
        trees: on the CPU; they may share tensors.
    """
    kinds: dict[tuple[object, ...], int] = {}
    groups: list[list[Tensor]] = []
    seen: dict[tuple[object, ...], tuple[int, int]] = {}
    known: dict[tuple[str, ...], tuple[str, ...]] = {}
    names, places = [], []
    for tree in trees:
        found = []
        for tensor in tree.values():
            kind = (tensor.dtype, tensor.shape)
            key = (tensor.data_ptr(), tensor.stride(), *kind)
            if key not in seen or not tensor.numel():
                group = kinds.setdefault(kind, len(groups))
                if group == len(groups):
                    groups.append([])
                seen[key] = group, len(groups[group])
                groups[group].append(tensor)
            found.append(seen[key])
        own = tuple(tree)
        names.append(known.setdefault(own, own))
        places.append(np.array(found, dtype=np.int64).reshape(len(found), 2))
    return Packed([torch.stack(group).numpy() for group in groups], names, places)


def unpack(packed: Packed) -> list[Params]:
    """The inverse of `pack`, in new memory."""
    rows = [torch.from_numpy(np.array(array)).unbind(0) for array in packed.arrays]
    return [
        {name: rows[array][row] for name, (array, row) in zip(names, places.tolist(), strict=True)}
        for names, places in zip(packed.names, packed.places, strict=True)
    ]
