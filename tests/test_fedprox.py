"""FedProx: the proximal gradient against finite differences, and its two ends."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from fedham_flwr.algorithms.fedprox import add_proximal_
from fedham_flwr.core.errors import UserError


def test_the_term_by_hand() -> None:
    w = nn.Parameter(torch.tensor([1.0, 2.0]))
    w.grad = torch.tensor([10.0, 10.0])
    add_proximal_(w.detach(), w.grad, torch.tensor([0.0, 4.0]), 0.5)
    assert torch.equal(w.grad, torch.tensor([10 + 0.5 * (1 - 0), 10 + 0.5 * (2 - 4)]))


def test_the_term_is_the_derivative_of_half_mu_times_the_squared_distance() -> None:
    generator = torch.Generator().manual_seed(0)
    w, anchor = (torch.randn(5, dtype=torch.float64, generator=generator) for _ in range(2))
    param, mu, step = nn.Parameter(w.clone()), 0.3, 1e-6
    param.grad = torch.zeros(5, dtype=torch.float64)
    add_proximal_(param.detach(), param.grad, anchor, mu)
    for i in range(5):
        shift = torch.zeros(5, dtype=torch.float64)
        shift[i] = step
        up, down = (mu / 2 * (w + s * shift - anchor).square().sum() for s in (1, -1))
        assert param.grad[i].item() == pytest.approx(((up - down) / (2 * step)).item(), abs=1e-9)


def test_mu_zero_is_fedavg_bit_for_bit(federated: Callable[..., Any]) -> None:
    prox = federated(strategy="fedprox", samples_per_client=64, **{"fedprox.mu": 0.0})
    average = federated(strategy="fedavg", samples_per_client=64)
    assert prox.summary["digest"] == average.summary["digest"]


def test_a_large_mu_holds_clients_near_the_global_model(federate: Callable[..., Any]) -> None:
    loss = {}
    for mu in (0.0, 10.0):
        run = federate(strategy="fedprox", samples_per_client=64, learning_rate=0.02, **{"fedprox.mu": mu})
        after = [r for r in run.rows if r.round == 1 and (r.split, r.phase, r.metric) == ("test", "after", "loss")]
        before = [r for r in run.rows if r.round == 1 and (r.split, r.phase, r.metric) == ("test", "before", "loss")]
        loss[mu] = sum(b.value - a.value for a, b in zip(after, before, strict=True))
    assert 0 < loss[10.0] < loss[0.0]


def test_a_negative_mu_is_refused(federate: Callable[..., Any]) -> None:
    with pytest.raises(UserError, match=r"fedprox.mu=-0.1: wanted greater than or equal to 0|should be greater"):
        federate(strategy="fedprox", **{"fedprox.mu": -0.1})
