"""Messages and states for another process: equal shapes as one array, and a tensor that several trees share once.

Pickled one by one, each row of a cohort's tensors would take all of them along.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from flwr.app import RecordDict
from flwr.common.serde import recorddict_from_proto, recorddict_to_proto
from flwr.proto.recorddict_pb2 import RecordDict as RecordDictProto  # pylint: disable=E0611
from torch import Tensor

from fedham_flwr.core.parameters import Params
from fedham_flwr.federation.direct import Direct, Reply
from fedham_flwr.federation.messages import Download, Extras
from fedham_flwr.state.format import Label
from fedham_flwr.state.held import Held


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


class Parcel(NamedTuple):
    """The contents of several messages.

    Attributes:
        told: of each, a value without its tensors, or the bytes of a record.
        tensors: the trees of all values, two of each: of the model, and of the method's own.
    """

    told: list[Download | Reply | bytes]
    tensors: Packed


class States(NamedTuple):
    """What several clients keep.

    Attributes:
        nodes: the clients' nodes.
        labels: what each keeps.
        tensors: the trees.
        alone: the worker that made this has forgotten all that its clients keep.
    """

    nodes: list[int]
    labels: list[Label]
    tensors: Packed
    alone: bool = False


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


def unpack(packed: Packed, wanted: Sequence[int] | None = None) -> list[Params]:
    """The inverse of `pack`, in new memory.

    Args:
        packed: the trees.
        wanted: numbers of the trees that are wanted; by default all.
    """
    if wanted is None:
        rows = [torch.from_numpy(np.array(array)).unbind(0) for array in packed.arrays]
        return [
            {name: rows[array][row] for name, (array, row) in zip(names, places.tolist(), strict=True)}
            for names, places in zip(packed.names, packed.places, strict=True)
        ]
    return [
        {
            name: torch.from_numpy(np.array(packed.arrays[array][row]))
            for name, (array, row) in zip(packed.names[tree], packed.places[tree].tolist(), strict=True)
        }
        for tree in wanted
    ]


def wrap(contents: Sequence[RecordDict]) -> Parcel:
    """The contents of messages as one parcel."""
    told: list[Download | Reply | bytes] = []
    trees = []
    for content in contents:
        value = content.value if isinstance(content, Direct) else None
        if isinstance(value, Download):
            trees += [value.params, value.extras.tensors]
            told.append(dataclasses.replace(value, params={}, extras=Extras({}, value.extras.facts)))
        elif isinstance(value, Reply):
            trees += [value.params, value.extras]
            told.append(value._replace(params={}, extras={}))
        else:
            told.append(recorddict_to_proto(content).SerializeToString())
    return Parcel(told, pack(trees))


def unwrap(parcel: Parcel) -> list[RecordDict]:
    """The inverse of `wrap`."""
    trees, contents = iter(unpack(parcel.tensors)), []
    for value in parcel.told:
        if isinstance(value, bytes):
            contents.append(recorddict_from_proto(RecordDictProto.FromString(value)))
            continue
        params, more = next(trees), next(trees)
        if isinstance(value, Download):
            extras = Extras(more, value.extras.facts)
            contents.append(Direct(dataclasses.replace(value, params=params, extras=extras)))
        else:
            contents.append(Direct(value._replace(params=params, extras=more)))
    return contents


def pack_states(held: dict[int, Held]) -> States:
    """What clients keep, by node, as one value."""
    labels = [each.label for each in held.values()]
    return States(list(held), labels, pack([each.params for each in held.values()]))


def unpack_states(states: States, wanted: Sequence[int]) -> dict[int, Held]:
    """What some of these clients keep.

    Args:
        states: as of `pack_states`.
        wanted: their places in it.
    """
    trees = unpack(states.tensors, wanted)
    return {states.nodes[at]: Held(tree, states.labels[at]) for at, tree in zip(wanted, trees, strict=True)}
