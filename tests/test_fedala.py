"""FedALA: what its weights take of the global model, by hand, by a naive loop and at both ends."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from clients.fedala import FedALAClient
from fedham_flwr.algorithms.fedala import aggregate_locally, weight_step
from fedham_flwr.federation.record_values import tensors


def test_the_start_by_hand() -> None:
    own, common, weights = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([3.0, 0.0, 3.0]), torch.tensor([0.5, 1.0, 0.0])
    assert aggregate_locally(own, common, weights).tolist() == [2.0, 0.0, 3.0]


def test_the_ends_are_the_own_and_the_global_model() -> None:
    own, common = torch.tensor([1.5, -2.0]), torch.tensor([0.25, 8.0])
    assert torch.equal(aggregate_locally(own, common, torch.zeros(2)), own)
    assert torch.equal(aggregate_locally(own, common, torch.ones(2)), common)


@given(st.integers(1, 5), st.floats(0, 3), st.integers(0, 9))
def test_a_step_is_the_loop_over_its_scalars(size: int, rate: float, seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    weights = torch.rand(size, generator=draw)
    gradient, own, common = (torch.randn(size, generator=draw) for _ in range(3))
    after = weight_step(weights, gradient, own, common, rate)
    for i in range(size):
        moved = weights[i].item() - rate * gradient[i].item() * (common[i].item() - own[i].item())
        assert after[i].item() == pytest.approx(min(1.0, max(0.0, moved)), abs=1e-5)


def test_the_step_descends_the_loss_of_the_aggregated_model() -> None:
    """By finite differences: dL(u(W))/dW is the gradient at u times the difference of the models."""
    draw = torch.Generator().manual_seed(1)
    own, common, target = (torch.randn(4, dtype=torch.float64, generator=draw) for _ in range(3))
    weights = torch.full((4,), 0.5, dtype=torch.float64)

    def loss(w: torch.Tensor) -> torch.Tensor:
        return (aggregate_locally(own, common, w) - target).square().sum()

    gradient = 2 * (aggregate_locally(own, common, weights) - target)
    moved = (weights - weight_step(weights, gradient, own, common, 1e-3)) / 1e-3
    for i in range(4):
        shift = torch.zeros(4, dtype=torch.float64)
        shift[i] = 1e-6
        slope = (loss(weights + shift) - loss(weights - shift)) / 2e-6
        assert moved[i].item() == pytest.approx(slope.item(), abs=1e-6)


def kept(run: Any) -> list[dict[str, torch.Tensor]]:
    return [tensors(context.state.array_records["personal"]) for context in run.grid.contexts.values()]


def test_weights_that_stay_at_one_are_fedavg_bit_for_bit(federate: Callable[..., Any]) -> None:
    few = {"num_server_rounds": 3, "samples_per_client": 64}
    ala = federate(strategy="fedala", **few, **{"fedala.rate": 0.0})
    average = federate(strategy="fedavg", **few)
    # u = w_k + (w - w_k) rounds otherwise than w
    assert all(torch.allclose(ala.state[name], tensor, atol=1e-5) for name, tensor in average.state.items())


def test_weights_are_learned_from_the_second_round_on(
    federate: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    rounds: list[int] = []
    learned = FedALAClient.learned
    monkeypatch.setattr(
        FedALAClient, "learned", lambda self, *a: rounds.append(self.job.download.round) or learned(self, *a)
    )
    run = federate(strategy="fedala", num_server_rounds=3, classes_per_client=4, samples_per_client=100)
    assert sorted(set(rounds)) == [2, 3]
    for own in kept(run):
        assert {name for name in own if name.startswith("weight/")} == {"weight/fc2.weight", "weight/fc2.bias"}
        weights = own["weight/fc2.weight"]
        assert bool(((weights >= 0) & (weights <= 1)).all())
        assert bool((weights < 1).any())
