"""Exported models: a client's model as one safetensors file, and the network built anew from it."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import nn

from fedham_flwr.core.errors import UserError
from fedham_flwr.core.files import SAFE_NAME, write_tensors
from fedham_flwr.models import MODELS, NetworkSettings, build, resolve
from fedham_flwr.models.char_transformer import CharTransformerSettings
from fedham_flwr.models.cnn import TransferCNNSettings
from fedham_flwr.models.grafts import GraftSettings
from fedham_flwr.models.mlp import MLPSettings
from fedham_flwr.models.transformer import Transformer
from fedham_flwr.models.vit import ViTSettings


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
    if not SAFE_NAME.fullmatch(client):
        raise UserError(
            f"client id {client!r} cannot name a file: wanted 1 to 64 of A-Z a-z 0-9 . _ - not starting with a dot"
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return write_tensors(folder / f"{client}.safetensors", tensors, metadata)
    except (OSError, SafetensorError) as error:
        why = getattr(error, "strerror", None) or error
        raise UserError(f"the model of client {client} cannot be written to {folder}: {why}") from error


def label(name: str, shape: tuple[int, ...], classes: int, how: NetworkSettings) -> dict[str, str]:
    """What `load` needs to know to build a network anew; arguments as for `build`."""
    name = resolve(name, shape)
    network: dict[str, object] = {}
    section = name.replace("-", "_")
    if hasattr(how, section):
        network[section] = dataclasses.asdict(getattr(how, section))
    if issubclass(MODELS[name], Transformer):
        network["personal_head"] = how.personal_head
    if how.graft.kind != "none":
        network["graft"] = dataclasses.asdict(how.graft)
    numbers = ",".join(map(str, shape))
    return {"model": name, "shape": numbers, "classes": str(classes), "network": json.dumps(network, sort_keys=True)}


def load(path: str | Path) -> nn.Module:
    """A client's model out of the file that a run leaves, ready to predict.

    Args:
        path: `<run>/model/<client>.safetensors`.

    Returns:
        The network in evaluation mode. Images go in as float32 [b, channels, height, width] in -1..1, that is
        pixel / 127.5 - 1, texts as int64 [b, length], the characters' places in the vocabulary, and rows of a table as
        `tables.read_scaling(path).inputs(rows)` makes them.

    Raises:
        UserError: there is no such file, or none that a run has left.
    """
    try:
        with safe_open(path, framework="pt") as file:
            written = file.metadata() or {}
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"{path} cannot be read as a model ({error}); wanted a file model/<client>.safetensors"
        ) from error
    if missing := [key for key in ("model", "shape", "classes", "network") if key not in written]:
        raise UserError(
            f"{path} does not say its {', '.join(missing)}: wanted a file model/<client>.safetensors of a run"
        )
    shape = tuple(map(int, written["shape"].split(",")))
    model = build(written["model"], shape, int(written["classes"]), 0, _settings(json.loads(written["network"])))
    model.load_state_dict(load_file(path))
    return model.eval()


def _settings(network: Mapping[str, Any]) -> NetworkSettings:
    """The inverse of what `label` writes; what is not there has its default."""
    return NetworkSettings(
        vit=ViTSettings(**network.get("vit", {})),
        char_transformer=CharTransformerSettings(**network.get("char_transformer", {})),
        personal_head=network.get("personal_head", False),
        transfer_cnn=TransferCNNSettings(**network.get("transfer_cnn", {})),
        graft=GraftSettings(**network.get("graft", {})),
        mlp=MLPSettings(**network.get("mlp", {})),
    )
