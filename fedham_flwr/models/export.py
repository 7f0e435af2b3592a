"""Exported models: a client's model as one safetensors file, and the network built anew from it."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import nn

from fedham_flwr.core.errors import UnwritableError, UserError, cause
from fedham_flwr.core.files import SAFE_ID, write_tensors
from fedham_flwr.core.imports import is_path, load_object, section_of, settings_class
from fedham_flwr.models import MODELS, NETWORKS, NetworkSettings, build, resolve
from fedham_flwr.models.adapted_weights import merged
from fedham_flwr.models.grafts import GraftSettings
from fedham_flwr.models.heads import HeadSettings
from fedham_flwr.models.hub_folder import HUB, HubNetworkSettings, HubSettings, describe
from fedham_flwr.models.torchvision_models import TORCHVISION, TorchvisionSettings


def write_model(folder: Path, client: str, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str]) -> Path:
    """Write one client's model as `<folder>/<client>.safetensors` and return its path.

    Args:
        folder: Where; it is made if need be.
        client: Client id, which becomes the name of the file.
        tensors: The whole model by parameter name, on any device; memory may be shared between them.
        metadata: Stored in the file's header.

    Raises:
        UserError: `client` cannot be a file name, or the file cannot be written.
    """
    if not SAFE_ID.fullmatch(client):
        raise UserError(
            f"client id {client!r} cannot name a file: wanted 1 to 64 of A-Z a-z 0-9 . _ - not starting with a dot"
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return write_tensors(folder / f"{client}.safetensors", tensors, metadata)
    except (OSError, SafetensorError) as error:
        raise UnwritableError(f"the model of client {client} cannot be written to {folder}: {cause(error)}") from error


def label(name: str, shape: tuple[int, ...], outputs: int, settings: NetworkSettings) -> dict[str, str]:
    """What `load` needs to know to build a network anew; arguments as for `build`."""
    name = resolve(name, shape)
    network: dict[str, object] = {}
    if (own := settings.section(name)) is not None:
        network[_key(name)] = dataclasses.asdict(describe(own) if isinstance(own, HubSettings) else _without_file(own))
    if settings.head.kind:
        network["head"] = settings.head.kind
    if settings.graft.kind != "none":
        graft = dataclasses.asdict(settings.graft)
        network["graft"] = {key: value for key, value in graft.items() if key != "section"}
    if settings.adapters is not None:
        network["adapters"] = {"scale": settings.adapters.scale}
    numbers = ",".join(map(str, shape))
    return {"model": name, "shape": numbers, "classes": str(outputs), "network": json.dumps(network, sort_keys=True)}


def read_header(path: str | Path) -> dict[str, str]:
    """What a model's file says of it.

    Args:
        path: `<run>/model/<client>.safetensors`.

    Raises:
        UserError: there is no such file, or none that a run has left.
    """
    try:
        with safe_open(path, framework="pt") as file:
            written = dict(file.metadata() or {})
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"{path} cannot be read as a model ({error}); wanted a file model/<client>.safetensors"
        ) from error
    if missing := [key for key in ("model", "shape", "classes", "network") if key not in written]:
        raise UserError(
            f"{path} does not say its {', '.join(missing)}: wanted a file model/<client>.safetensors of a run"
        )
    return written


def load(path: str | Path, *, trust_imports: bool = False) -> nn.Module:
    """A client's model out of the file that a run leaves, ready to predict.

    Args:
        path: `<run>/model/<client>.safetensors`.
        trust_imports: whether a network of a user's own is built, by the import path that the file names: its module
            is imported, which runs its code, and the object is called. Of a file of strangers, look at the path first.

    Returns:
        The network in evaluation mode; adapters that it was trained with are merged into its weights. Images go in as
        float32 [b, channels, height, width] in -1..1, that is pixel / 127.5 - 1, texts as int64 [b, length], the codes
        of their tokens, series as float32 [b, 2 C, T] as `batches.channels_with_gaps` makes them, and rows of a table
        as `tables.read_scaling(path).inputs(rows)` does.

    Raises:
        UserError: there is no such file, or none that a run has left, its network is no longer what it was, or
            it names a network by an import path that is not trusted.
    """
    written = read_header(path)
    shape, name = tuple(map(int, written["shape"].split(","))), written["model"]
    if is_path(name) and not trust_imports:
        raise UserError(
            f'{path} names its network by the import path "{name}", which is code that would be run: wanted '
            "trust_imports=True, if it is yours (on the command line --trust-imports)"
        )
    if not (is_path(name) or name in (*MODELS, HUB) or name.startswith(TORCHVISION)):
        raise UserError(f'{path} names the network "{name}", which there is not: wanted a file of a run')
    network = json.loads(written["network"])
    model, tensors = build(name, shape, int(written["classes"]), 0, _settings(name, network)), load_file(path)
    if "adapters" in network:
        tensors = merged(tensors, float(network["adapters"]["scale"]))
    try:
        model.load_state_dict(_renamed(tensors))
    except RuntimeError as error:  # of torch, in several lines
        why = " ".join(str(error).split())
        raise UserError(f'{path} does not fit model="{name}" as it is now: {why}') from error
    return model.eval()


def _settings(name: str, network: Mapping[str, Any]) -> NetworkSettings:
    """The inverse of what `label` writes; what is not there has its default."""
    given: type | None
    if name == HUB:
        given = HubNetworkSettings
    elif is_path(name):
        given = settings_class(load_object("model", name))
    else:
        given = NETWORKS.get(_key(name).replace("_", "-"))
    own = given(**network.get(_key(name), {})) if given else None
    own = _without_file(own) if own else None
    section = _key(name).replace("_", "-")
    graft = GraftSettings(**network.get("graft", {}))
    parts = network.get("head", "second" if network.get("personal_head") else "")
    head = HeadSettings(parts, "the file") if parts else HeadSettings()
    return NetworkSettings(((section, own),) if own else (), head, graft)


def _renamed(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A file's tensors by today's names: in version 0.1 a second head was a module beside the first."""
    return {re.sub(r"^personal_head\.", "head.personal.", name): tensor for name, tensor in tensors.items()}


def _without_file(own: Any) -> Any:
    """A network's settings, but for the file of its first weights: an exported model has its own."""
    return dataclasses.replace(own, weights="") if isinstance(own, TorchvisionSettings) else own


def _key(name: str) -> str:
    """Of a network's settings in the label."""
    return ("torchvision" if name.startswith(TORCHVISION) else section_of(name)).replace("-", "_")
