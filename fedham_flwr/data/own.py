"""Data that a function of a user's loads: any tensors or arrays, for one client at a time."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedham_flwr.core.errors import UserError, described, first_line
from fedham_flwr.core.imports import call, load_object
from fedham_flwr.core.seeding import stream
from fedham_flwr.data.batches import Kind
from fedham_flwr.data.client_data import SPLITS, ClientData
from fedham_flwr.data.data_settings import DataSettings
from fedham_flwr.data.splits import split

Pair = tuple[Tensor, Tensor | list[str]]


@lru_cache(maxsize=64)
def open_own(settings: DataSettings, client: int, clients: int, data_path: str = "") -> ClientData:
    """What the function that the setting `dataset` names loads for one client; once per process.

    The function is called with those of `client`, `clients`, `seed`, `data_path` and its own settings that its
    signature names. It returns a mapping from "train", "test" and perhaps "validation" to (inputs, targets), or one
    such pair, which is then split by `validation-fraction` and `test-fraction`; a `datasets.Dataset` with the columns
    `inputs` and `targets`, or `image` and `label`, or those that `feature-column` and `label-column` name, stands
    for a pair, and a `DatasetDict` for a mapping. Inputs are floats of any shape, or uint8 [n, H, W, C] of images.
    Targets are whole numbers or texts [n] of classes, bool or uint8 [n, k] of labels, or floats [n] or [n, k].
    "classes" in the mapping names the classes, in the order of their numbers; it is needed where a client lacks some,
    and targets are texts.

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
        raise UserError(f"{what} failed for client {client}: {described(error)}") from error
    name = data_path.rstrip("/").rpartition("/")[2] or str(client)
    if not isinstance(loaded, Mapping):
        return _whole(settings, *_pair(settings, "all", loaded), _class_names(settings, loaded), name)
    named = tuple(map(str, loaded.get("classes", ())))
    parts = {which: part for which, part in loaded.items() if which != "classes"}
    if missing := [which for which in ("train", "test") if which not in parts]:
        raise UserError(f"{what}: client {client} has the splits {', '.join(map(str, parts))}, and lacks {missing[0]}")
    if unknown := [which for which in parts if which not in SPLITS]:
        raise UserError(f"{what}: {unknown[0]!r} is no split; wanted {', '.join(SPLITS)}")
    pairs = {which: _pair(settings, which, parts[which]) for which in SPLITS if which in parts}
    return _joined(what, pairs, named or _class_names(settings, parts["train"]), name)


def _whole(
    settings: DataSettings, features: Tensor, targets: Tensor | list[str], named: tuple[str, ...], name: str
) -> ClientData:
    """One pair, split by the fractions; by class, where there are classes."""
    labels, classes = _targets(f'dataset="{settings.dataset}"', {"all": targets}, named)
    strata = labels.numpy() if classes else np.zeros(len(labels), dtype=np.int64)
    rng = stream(settings.partitioning.seed, "split", client=name)
    numbers = split(np.arange(len(labels)), strata, settings.fractions, rng, name)
    splits = {which: torch.from_numpy(numbers[which]) for which in SPLITS}
    return ClientData(features, labels, splits, classes or _names(labels), name, kind=_kind(features))


def _joined(what: str, pairs: Mapping[str, Pair], named: tuple[str, ...], name: str) -> ClientData:
    """The splits one after the other."""
    shapes = {which: tuple(pair[0].shape[1:]) for which, pair in pairs.items()}
    if len(set(shapes.values())) > 1:
        raise UserError(f"{what}: samples differ in shape: {', '.join(f'{k} {v}' for k, v in shapes.items())}")
    labels, classes = _targets(what, {which: pair[1] for which, pair in pairs.items()}, named)
    features = torch.cat([pair[0] for pair in pairs.values()])
    splits, first = {}, 0
    for which in SPLITS:
        count = len(pairs[which][0]) if which in pairs else 0
        splits[which] = torch.arange(first, first + count)
        first += count
    return ClientData(features, labels, splits, classes or _names(labels), name, kind=_kind(features))


def _kind(features: Tensor) -> Kind:
    return "image" if features.dtype == torch.uint8 else "array"


def _pair(settings: DataSettings, which: str, given: Any) -> Pair:
    """Inputs and targets as tensors; texts stay texts."""
    what = f'dataset="{settings.dataset}"'
    if hasattr(given, "column_names"):
        given = _columns(settings, given)
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
    _check_targets(what, which, targets)
    if len(inputs) != len(targets):
        raise UserError(f"{what}: {which} has {len(inputs)} inputs and {len(targets)} targets, wanted as many of both")
    if which in ("train", "all") and not len(inputs):
        raise UserError(f"{what}: {which} has no samples")
    return inputs, targets


def _check_targets(what: str, which: str, targets: Tensor | list[str]) -> None:
    """Refuse targets that are none of classes, labels or values."""
    if isinstance(targets, list):
        return
    found = f"{what}: the targets of {which} are {targets.dtype} {list(targets.shape)}"
    if targets.is_complex() or targets.dim() not in (1, 2) or 0 in targets.shape[1:]:
        raise UserError(f"{found}, and wanted are whole numbers or texts [n], bool or uint8 [n, k], or floats")
    if targets.is_floating_point():
        if not bool(torch.isfinite(targets).all()):
            raise UserError(f"{what}: the targets of {which} hold NaN or infinity, wanted numbers")
    elif targets.dim() == 2:
        if targets.shape[1] == 1 and targets.dtype not in (torch.bool, torch.uint8):
            raise UserError(f"{found}, and wanted are classes [n], or bool or uint8 [n, k] of labels")
        if bool(((targets != 0) & (targets != 1)).any()):
            raise UserError(f"{found} with other numbers than 0 and 1, which labels are")
    elif bool((targets < 0).any()):
        raise UserError(f"{what}: a class in {which} is {int(targets.min())}, wanted whole numbers from 0")


def _column_names(settings: DataSettings, data: Any) -> tuple[str, str]:
    """Which columns of a `datasets.Dataset` are inputs and targets."""
    asked = (settings.feature_column, settings.label_column)
    for inputs, targets in (asked, ("inputs", "targets"), ("image", "label")):
        if {inputs, targets} <= set(data.column_names):
            return inputs, targets
    wanted = " and ".join(asked) if all(asked) else "inputs and targets"
    raise UserError(
        f'dataset="{settings.dataset}": the data set has the columns {", ".join(data.column_names)}, wanted {wanted}'
    )


def _columns(settings: DataSettings, data: Any) -> tuple[Any, Any]:
    """Inputs and targets of a `datasets.Dataset`."""
    inputs, targets = _column_names(settings, data)
    try:
        features = np.stack([np.asarray(value) for value in data[inputs]])
    except ValueError as error:
        raise UserError(
            f'dataset="{settings.dataset}": column {inputs}: {first_line(error)}; wanted samples of one shape'
        ) from error
    if features.dtype == np.uint8 and features.ndim == 3:
        features = features[..., None]  # grey images have no channel
    return features.astype(np.float32) if features.dtype == np.float64 else features, np.asarray(data[targets])


def _class_names(settings: DataSettings, data: Any) -> tuple[str, ...]:
    """The classes that a column of class labels names; none otherwise."""
    if not hasattr(data, "column_names"):
        return ()
    return tuple(getattr(data.features[_column_names(settings, data)[1]], "names", None) or ())


def _tensor(what: str, part: str, given: Any) -> Tensor:
    try:
        return given.detach().cpu() if isinstance(given, Tensor) else torch.from_numpy(np.ascontiguousarray(given))
    except (TypeError, ValueError) as error:
        raise UserError(
            f"{what}: the {part} are no numbers ({first_line(error)}), wanted a tensor or an array"
        ) from error


def _targets(
    what: str, parts: Mapping[str, Tensor | list[str]], named: tuple[str, ...]
) -> tuple[Tensor, tuple[str, ...]]:
    """The targets of all splits as they are stored, and the names of the classes; none of labels and values."""
    kinds = {which: "texts" if isinstance(part, list) else str(part.dtype) for which, part in parts.items()}
    if len(set(kinds.values())) > 1:
        raise UserError(f"{what}: targets differ in type: {', '.join(f'{k} {v}' for k, v in kinds.items())}")
    tensors = [part for part in parts.values() if isinstance(part, Tensor)]
    if not tensors:
        return _numbered(what, [each for part in parts.values() for each in part], named)
    if len({tuple(part.shape[1:]) for part in tensors}) > 1:
        shapes = ", ".join(f"{which} {list(part.shape[1:])}" for which, part in zip(parts, tensors, strict=True))
        raise UserError(f"{what}: targets differ in shape: {shapes}")
    whole = torch.cat(tensors)
    if whole.is_floating_point():
        return whole.float(), ()
    if whole.dim() == 2:
        return whole.to(torch.uint8), ()
    whole = whole.long()
    if named and int(whole.max()) >= len(named):
        raise UserError(f"{what}: a class is {int(whole.max())}, and classes names {len(named)}, from 0")
    return whole, named or tuple(map(str, range(int(whole.max()) + 1)))


def _numbered(what: str, texts: list[Any], named: tuple[str, ...]) -> tuple[Tensor, tuple[str, ...]]:
    """Classes by their places among the names, which are those that occur, in order, if none are given."""
    names = named or tuple(sorted(set(texts)))
    numbers = {name: number for number, name in enumerate(names)}
    if unknown := [text for text in texts if text not in numbers]:
        raise UserError(f"{what}: {unknown[0]!r} is no class; classes names {', '.join(names)}")
    return torch.tensor([numbers[text] for text in texts]), names


def _names(labels: Tensor) -> tuple[str, ...]:
    """Of labels or values."""
    return tuple(map(str, range(labels.shape[1] if labels.dim() == 2 else 1)))
