"""Server halves that mix, without a run around them: made, trained a round, and looked at."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from presets import network, planned
from torch import Tensor

from fedham_flwr.core.parameters import Params, read
from fedham_flwr.federation.contract import Task
from fedham_flwr.federation.messages import Upload
from fedham_flwr.models.grouping import manifest_of
from fedham_flwr.server_app import build_strategy
from fedham_flwr.settings import Value, parse


def names(clients: int) -> tuple[str, ...]:
    return tuple(map(str, range(clients)))


def server(strategy: str, clients: int = 4, **given: Value) -> Any:
    """A method's server half with its clients added; settings of its own without its name: self_weight=1."""
    keys = {f"{strategy}.{name.replace('_', '-')}": value for name, value in given.items()}
    model = network(strategy)
    manifest = manifest_of(model, [])
    chosen = parse({"strategy": strategy, "device": "cpu", "model": "digits-cnn", **keys})
    made = build_strategy(chosen, manifest, read(model, manifest.names()), Task((1, 8, 8), 10))
    made.add_clients(names(clients))
    return made


def trained(starts: Mapping[str, Params], seed: int, length: float = 0.1) -> dict[str, Upload]:
    """Uploads a random step from the start, of clients with 10, 11, ... samples."""
    uploads = {}
    for client, params in starts.items():
        draw = torch.Generator().manual_seed(1000 * seed + int(client))
        moved = {name: t + length * torch.randn(t.shape, generator=draw) for name, t in params.items()}
        uploads[client] = Upload(client, moved, 10 + int(client), ())
    return uploads


def after_rounds(made: Any, rounds: int, clients: int = 4) -> Any:
    for number in range(1, rounds + 1):
        made.merge(number, trained(planned(made.plan(number, names(clients))), number))
        made.progress.trained |= set(names(clients))
    return made


def state_of(made: Any) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in made.state_dict().items()}


def flat(params: Mapping[str, Tensor]) -> Tensor:
    """All numbers of a model, in float64."""
    return torch.cat([tensor.double().flatten() for tensor in params.values()])


def models_of(made: Any, clients: int = 4) -> Tensor:
    """The pool's models as rows, float64 [N, P]."""
    return torch.stack([flat(made._pool.bank.model(client)) for client in names(clients)])


def scores(run: Any) -> list[tuple[Any, ...]]:
    return [tuple(row) for row in run.rows]
