"""Ditto: its global model is FedAvg's way of training, its private one is local training without the penalty."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from safetensors.torch import load_file

from fedham_flwr.core.seeding import torch_stream
from fedham_flwr.data.clients import open_partition
from fedham_flwr.federation.record_values import tensors
from fedham_flwr.models import build
from fedham_flwr.settings import parse
from fedham_flwr.training.trainer import Trainer


def private(run: Any) -> list[dict[str, torch.Tensor]]:
    return [tensors(context.state.array_records["personal"]) for context in run.grid.contexts.values()]


def test_without_penalty_the_private_model_is_local_training_bit_for_bit(federate: Callable[..., Any]) -> None:
    ditto = federate(strategy="ditto", num_server_rounds=3, **{"ditto.penalty": 0.0})
    local = federate(strategy="local", num_server_rounds=3)
    assert {row[:7] for row in ditto.rows} == {row[:7] for row in local.rows}
    for file in (local.path / "model").glob("*.safetensors"):
        ours, theirs = load_file(ditto.path / "model" / file.name), load_file(file)
        assert all(torch.equal(ours[name], tensor) for name, tensor in theirs.items())


def test_the_penalty_does_not_touch_the_global_model(federate: Callable[..., Any]) -> None:
    weak, strong = (federate(strategy="ditto", **{"ditto.penalty": p}) for p in (0.0, 2.0))
    assert all(torch.equal(weak.state[name], tensor) for name, tensor in strong.state.items())
    assert not torch.equal(private(weak)[0]["private/fc1.weight"], private(strong)[0]["private/fc1.weight"])


def test_a_round_is_two_trainings_written_out(federate: Callable[..., Any], settings: Callable[..., Any]) -> None:
    """The private model descends L(v) + (lambda/2) |v - w|^2 with the w that came, by autograd of that sum."""
    given = {"strategy": "ditto", "num_server_rounds": 1, "samples_per_client": 64, "momentum": 0.0}
    run = federate(clients=1, partitioner="iid", min_clients=1, **given, **{"ditto.penalty": 0.5})
    chosen = parse(settings(partitioner="iid", min_clients=1, **given))
    data, model = open_partition(chosen.data(), 0, 1), build("digits-cnn", (1, 8, 8), 10, 0)
    trainer = Trainer(model, torch.device("cpu"), "fp32")
    anchor = {name: tensor.clone() for name, tensor in trainer.initial.items()}
    trainer.fit(data, chosen.local_training(1), torch_stream(0, "global", 1, "0"))
    assert all(torch.equal(run.state[name], trainer.read([name])[name]) for name in run.state)

    def penalised(network: torch.nn.Module, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        far = sum((p - anchor[n]).square().sum() for n, p in network.named_parameters())
        return torch.nn.functional.cross_entropy(network(x), y) + 0.25 * far

    trainer.load(anchor)
    trainer.fit(data, chosen.local_training(1), torch_stream(0, "batches", 1, "0"), loss=penalised)
    (own,) = private(run)
    for name in anchor:
        assert torch.allclose(own["private/" + name], trainer.read([name])[name], atol=1e-6)


def test_the_private_model_enters_no_message(federate: Callable[..., Any]) -> None:
    run = federate(strategy="ditto")
    assert all(name.startswith("private/") for own in private(run) for name in own)
    assert run.summary["bytes"]["up"] == sum(4 * tensor.numel() for tensor in run.state.values()) * 4 * 2
