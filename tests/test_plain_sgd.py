"""What methods need of local training: plain SGD, whose reach they know, or the task's loss as it is."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from test_training import HOW
from torch import nn

from fedham_flwr import models, registry
from fedham_flwr.core.errors import UserError
from fedham_flwr.core.parameters import Manifest, read
from fedham_flwr.federation.contract import Task
from fedham_flwr.server_app import build_strategy
from fedham_flwr.settings import Value, parse
from fedham_flwr.training import optim

OTHERS: list[tuple[dict[str, Value], str]] = [
    ({"optimizer": "adam"}, 'optimizer="adam"'),
    ({"optimizer": "torch.optim:SGD"}, 'optimizer="torch.optim:SGD"'),
    ({"max-grad-norm": 1.0}, "max-grad-norm=1"),
    ({"optimizer": "adamw", "max-grad-norm": 0.5}, 'optimizer="adamw" and max-grad-norm=0.5'),
]
METHODS: list[tuple[dict[str, Value], str]] = [
    ({"strategy": "amn"}, 'strategy="amn"'),
    ({"strategy": "fedham", "fedham.transport": "mediated"}, 'fedham.transport="mediated"'),
    (
        {"strategy": "fedham", "fedham.transport": "peers", "fedham.base-objective": "own"},
        'fedham.base-objective="own"',
    ),
]


def made(given: dict[str, Value]) -> Any:
    settings = parse({"model": "digits-cnn", **given, "device": "cpu"})
    model = models.build(settings.model, (1, 8, 8), 10, 0, settings.networks())
    manifest = Manifest.of(model)
    return build_strategy(settings, manifest, read(model, manifest.names()), Task((1, 8, 8), 10))


@pytest.mark.parametrize(("training", "fault"), OTHERS)
@pytest.mark.parametrize(("method", "what"), METHODS)
def test_a_method_that_needs_plain_sgd_refuses_others_at_its_start(
    method: dict[str, Value], what: str, training: dict[str, Value], fault: str
) -> None:
    with pytest.raises(UserError) as caught:
        made({**method, **training})
    assert str(caught.value) == (
        f"{what} takes what local training changes for a multiple of the gradient, which it is only with "
        f'optimizer="sgd" and max-grad-norm=0, not with {fault}'
    )


@pytest.mark.parametrize(("training", "fault"), OTHERS)
@pytest.mark.parametrize("method", [name for name in registry.BUILT_IN if registry.method(name).own_steps])
def test_a_method_with_steps_of_its_own_refuses_other_optimisers_and_takes_the_default_momentum(
    method: str, training: dict[str, Value], fault: str
) -> None:
    assert made({"strategy": method}).settings.momentum == 0.9
    with pytest.raises(UserError) as caught:
        made({"strategy": method, **training})
    assert str(caught.value) == (
        f'strategy="{method}" takes steps of its own, and no optimiser\'s: wanted optimizer="sgd" and max-grad-norm=0, '
        f"not {fault}"
    )


@pytest.mark.parametrize("method", [method for method, _ in METHODS])
def test_it_takes_nesterov_schedules_and_local_steps(method: dict[str, Value]) -> None:
    strategy = made({**method, "nesterov": True, "schedule": "cosine", "warmup-rounds": 2, "local-steps": 3})
    assert strategy.settings.local_training(1).nesterov


def test_fedham_refuses_when_auto_becomes_mediated() -> None:
    strategy = made({"strategy": "fedham", "optimizer": "adam"})
    with pytest.raises(UserError, match=r'^fedham\.transport="auto" is "mediated" with 21 clients, which takes'):
        strategy.add_clients([str(k) for k in range(21)])
    made({"strategy": "fedham", "optimizer": "adam"}).add_clients([str(k) for k in range(20)])


@pytest.mark.parametrize("nesterov", [False, True])
def test_the_reach_is_the_way_that_a_constant_gradient_goes_in_the_long_run(nesterov: bool) -> None:
    settings = replace(HOW, weight_decay=0.0, nesterov=nesterov, steps=1000)
    (param,) = mine = [nn.Parameter(torch.zeros(1))]
    optimizer = optim.make(mine, settings)
    for _ in range(1000):
        param.grad = torch.ones(1)
        optimizer.step()
    assert -param.item() == pytest.approx(settings.reach(10), rel=0.01)


@pytest.mark.parametrize(
    ("given", "fault"),
    [
        ({"loss": "torch.nn:CrossEntropyLoss"}, 'loss="torch.nn:CrossEntropyLoss"'),
        ({"label-smoothing": 0.1}, "label-smoothing=0.1"),
        ({"label-smoothing": 0.2, "class-weights": "balanced"}, 'label-smoothing=0.2 and class-weights="balanced"'),
    ],
)
def test_fedrod_has_losses_of_its_own_and_refuses_settings_of_another(given: dict[str, Value], fault: str) -> None:
    small: dict[str, Value] = {"strategy": "fedtp", "model": "vit", "vit.depth": 1, "vit.width": 16, "vit.heads": 2}
    made({**small, "fedtp.head": "shared", **given})
    made({**small, "fedtp.head": "fedrod"})
    with pytest.raises(UserError) as caught:
        made({**small, "fedtp.head": "fedrod", **given})
    assert str(caught.value) == (
        'fedtp.head="fedrod" has losses of its own: wanted loss="auto", label-smoothing=0 and class-weights="none", '
        f"not {fault}"
    )
