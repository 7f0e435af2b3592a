"""Data that a function of a user's loads: any tensors or arrays, for one client at a time."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedham_flwr.core.errors import UserError, first_line
from fedham_flwr.core.imports import call, load_object
from fedham_flwr.core.seeding import stream
from fedham_flwr.data.batches import Kind
from fedham_flwr.data.clients import SPLITS, ClientData, DataSettings
from fedham_flwr.data.partitions import split

Pair = tuple[Tensor, Tensor | list[str]]


@lru_cache(maxsize=64)
def open_own(settings: DataSettings, client: int, clients: int, data_path: str = "") -> ClientData:
    """What the function that the setting `dataset` names loads for one client; once per process.

    The function is called with those of `client`, `clients`, `seed`, `data_path` and its own settings that its
    signature names. It returns a mapping from "train", "test" and perhaps "validation" to (inputs, targets), or one
    such pair, which is then split by `validation-fraction` and `test-fraction`; a `datasets.Dataset` with the columns
    `inputs` and `targets`, or `image` and `label`, stands for a pair. Inputs are floats of any shape, or uint8
    [n, H, W, C] of images. Targets are whole numbers or texts [n] of classes, bool or uint8 [n, k] of labels, or floats
    [n] or [n, k] of values.

    Args:
        settings: the data set's name, seed and fractions, and the function's own settings.
        client: number of the client, from 0.
        clients: how many there are.
        data_path: of a node that has its own data, what its config says.

    Raises:
        UserError: the function fails, or what it returns is no data.
    """
    what = f'dataset="{settings.dataset}"'
    if settings.image_size:
        raise UserError(
            f"image-size={settings.image_size} resizes images when they are decoded, and {what} brings arrays: set 0"
        )
    load = load_object("dataset", settings.dataset)
    given = {"client": client, "clients": clients, "seed": settings.partitioning.seed, "data_path": data_path}
    try:
        loaded = call("dataset", load, settings.own, **given)
    except UserError:
        raise
    except Exception as error:  # whatever the user's function raises
        raise UserError(f"{what} failed for client {client}: {type(error).__name__}: {first_line(error)}") from error
    name = data_path.rstrip("/").rpartition("/")[2] or str(client)
    if not isinstance(loaded, Mapping) or hasattr(loaded, "column_names"):
        return _whole(settings, _pair(what, "all", loaded), name)
    if missing := [which for which in ("train", "test") if which not in loaded]:
        raise UserError(f"{what}: client {client} has the splits {', '.join(map(str, loaded))}, and lacks {missing[0]}")
    if unknown := [which for which in loaded if which not in SPLITS]:
        raise UserError(f"{what}: {unknown[0]!r} is no split; wanted {', '.join(SPLITS)}")
    pairs = {which: _pair(what, which, loaded[which]) for which in SPLITS if which in loaded}
    return _joined(what, pairs, name)


def _whole(settings: DataSettings, pair: Pair, name: str) -> ClientData:
    """One pair, split by the fractions; by class, where there are classes."""
    features, (labels, classes) = pair[0], _targets({"all": pair[1]})
    strata = labels.numpy() if classes else np.zeros(len(labels), dtype=np.int64)
    rng = stream(settings.partitioning.seed, "split", client=name)
    numbers = split(np.arange(len(labels)), strata, settings.fractions, rng, name)
    splits = {which: torch.from_numpy(numbers[which]) for which in SPLITS}
    return ClientData(features, labels, splits, classes or _names(labels), name, kind=_kind(features))


def _joined(what: str, pairs: Mapping[str, Pair], name: str) -> ClientData:
    """The splits one after the other."""
    shapes = {which: tuple(pair[0].shape[1:]) for which, pair in pairs.items()}
    if len(set(shapes.values())) > 1:
        raise UserError(f"{what}: samples differ in shape: {', '.join(f'{k} {v}' for k, v in shapes.items())}")
    labels, classes = _targets({which: pair[1] for which, pair in pairs.items()})
    features = torch.cat([pair[0] for pair in pairs.values()])
    splits, first = {}, 0
    for which in SPLITS:
        count = len(pairs[which][0]) if which in pairs else 0
        splits[which] = torch.arange(first, first + count)
        first += count
    return ClientData(features, labels, splits, classes or _names(labels), name, kind=_kind(features))


def _kind(features: Tensor) -> Kind:
    return "image" if features.dtype == torch.uint8 else "array"


def _pair(what: str, which: str, given: Any) -> Pair:
    """Inputs and targets as tensors; texts stay texts."""
    if hasattr(given, "column_names"):
        given = _columns(what, given)
    if not isinstance(given, tuple | list) or len(given) != 2:
        raise UserError(f"{what}: {which} is {type(given).__name__}, and wanted is a pair (inputs, targets)")
    inputs = _tensor(what, f"inputs of {which}", given[0])
    if not (inputs.is_floating_point() or (inputs.dtype == torch.uint8 and inputs.dim() == 4)):
        raise UserError(
            f"{what}: the inputs of {which} are {inputs.dtype} {list(inputs.shape)}, and wanted are floats of any "
            "shape or uint8 [n, H, W, C] of images"
        )
    if inputs.dim() < 2:
        raise UserError(f"{what}: the inputs of {which} have the shape {list(inputs.shape)}, wanted [n, ...]")
    if inputs.is_floating_point():
        inputs = inputs.float()
        if not bool(torch.isfinite(inputs).all()):
            raise UserError(f"{what}: the inputs of {which} hold NaN or infinity, wanted numbers")
    named = isinstance(given[1], list | tuple | np.ndarray) and len(given[1]) and isinstance(given[1][0], str)
    targets = [str(each) for each in given[1]] if named else _tensor(what, f"targets of {which}", given[1])
    if len(inputs) != len(targets):
        raise UserError(f"{what}: {which} has {len(inputs)} inputs and {len(targets)} targets, wanted as many of both")
    if which in ("train", "all") and not len(inputs):
        raise UserError(f"{what}: {which} has no samples")
    return inputs, targets


def _columns(what: str, data: Any) -> tuple[Any, Any]:
    """The columns of a `datasets.Dataset`."""
    for inputs, targets in (("inputs", "targets"), ("image", "label")):
        if {inputs, targets} <= set(data.column_names):
            return np.stack([np.asarray(value) for value in data[inputs]]), np.asarray(data[targets])
    raise UserError(f"{what}: the data set has the columns {', '.join(data.column_names)}, wanted inputs and targets")


def _tensor(what: str, part: str, given: Any) -> Tensor:
    try:
        return given.detach().cpu() if isinstance(given, Tensor) else torch.from_numpy(np.ascontiguousarray(given))
    except (TypeError, ValueError) as error:
        raise UserError(
            f"{what}: the {part} are no numbers ({first_line(error)}), wanted a tensor or an array"
        ) from error


def _targets(parts: Mapping[str, Tensor | list[str]]) -> tuple[Tensor, tuple[str, ...]]:
    """The targets of all splits as they are stored, and the names of the classes; none of labels and values."""
    if any(isinstance(part, list) for part in parts.values()):
        names = tuple(sorted({str(each) for part in parts.values() for each in part}))
        numbers = {name: number for number, name in enumerate(names)}
        return torch.tensor([numbers[str(each)] for part in parts.values() for each in part]), names
    whole = torch.cat([part for part in parts.values() if isinstance(part, Tensor)])
    if whole.is_floating_point():
        return whole.float(), ()
    if whole.dim() == 2:
        return whole.to(torch.uint8), ()
    whole = whole.long()
    if bool((whole < 0).any()):
        raise UserError(f"a class is {int(whole.min())}, wanted whole numbers from 0")
    return whole, tuple(map(str, range(int(whole.max()) + 1)))


def _names(labels: Tensor) -> tuple[str, ...]:
    """Of labels or values."""
    return tuple(map(str, range(labels.shape[1] if labels.dim() == 2 else 1)))
