"""Models and directories of runs as files, small and made in no time, and what a run starts from with them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from fedham_flwr import models
from fedham_flwr.models.grouping import manifest_of
from fedham_flwr.resume.warm_start import Start, read_start

CLIENTS = ("0", "1", "2", "3")
DIGITS = models.build("digits-cnn", (1, 8, 8), 10, 0)
TENSORS = {name: tensor.detach() for name, tensor in DIGITS.state_dict().items()}
LABEL = {"model": "digits-cnn", "strategy": "fedavg", "client": "0"}


def start(
    path: Path | str, net: torch.nn.Module = DIGITS, name: str = "digits-cnn", clients: Sequence[str] = CLIENTS,
    only: str = "",
) -> Start:  # fmt: skip
    """What a run with this network starts from, whose clients share all of it."""
    manifest = manifest_of(net, [])
    return read_start(str(path), manifest, manifest.names(), name, clients, only)


def same(given: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> bool:
    return given.keys() == wanted.keys() and all(torch.equal(given[name], tensor) for name, tensor in wanted.items())


def put(path: Path, change: Mapping[str, Tensor | None] | None = None, label: dict[str, str] | None = None) -> Path:
    """A file with the tensors of digits-cnn, some of them changed or, if None, left out."""
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor for name, tensor in {**TENSORS, **(change or {})}.items() if tensor is not None}
    save_file(tensors, path, LABEL if label is None else label)
    return path


def put_run(path: Path, server: Mapping[str, Tensor], strategy: str, clients: tuple[str, ...] = ()) -> Path:
    """The directory of a run with this state of the server and a model for each of these clients."""
    (path / "model").mkdir(parents=True)
    (path / "config.toml").write_text("")
    (path / "summary.json").write_text(json.dumps({"strategy": strategy, "num-rounds": 7}))
    save_file(dict(server), path / "server.safetensors", {"strategy": strategy, "model": "digits-cnn"})
    for client in clients:
        put(path / "model" / f"{client}.safetensors")
    return path
