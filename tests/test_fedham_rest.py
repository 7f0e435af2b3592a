"""The peers that FedHAM sends as one model, their mixture: against sums over all models, and as federations."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_fedham_rounds import DIGITS, TRANSPORTS, L
from torch import Tensor

from clients.fedham import FedHAMClient
from fedham_flwr.core.parameters import Params
from fedham_flwr.federation.contract import Outcome
from fedham_flwr.federation.stages import TRAIN
from fedham_flwr.mixing.peers import Peers
from fedham_flwr.mixing.rows import Row
from fedham_flwr.reporting.mixing_weights import read_weights
from fedham_flwr.settings import Value

Federate = Callable[..., Any]
GROUPS = ("conv1", "conv2", "fc1", "fc2")
FEW: dict[str, Value] = {**TRANSPORTS[0], "fedham.peers": 2}


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("rows", [1, 3])
@given(chosen=st.sets(st.integers(0, 6), max_size=6), zeros=st.sets(st.integers(0, 6)), seed=st.integers(0, 99))
def test_a_row_of_some_models_sums_to_one_and_spreads_what_they_have_together(
    rows: int, chosen: set[int], zeros: set[int], seed: int
) -> None:
    weights = noise(rows, 7, seed=seed).softmax(-1)
    weights[:, sorted(zeros)] = 0
    every = Row(torch.arange(7), weights)
    rest = [place for place in range(7) if place not in chosen]
    mixture = every.of(torch.tensor(rest))
    for row, found in zip(weights.tolist(), mixture.weights.tolist(), strict=True):
        total = sum(row[place] for place in rest)
        wanted = [row[place] / total if total else 1 / len(rest) for place in rest]
        assert found == pytest.approx(wanted, abs=1e-6)
    assert torch.allclose(every.spread(mixture).weights, weights, atol=1e-6)  # what it was made from is found again
    other = Row(torch.arange(7), noise(rows, 7, seed=seed + 100).softmax(-1))
    for row, spread, shares in zip(
        other.weights.tolist(), other.spread(mixture).weights.tolist(), mixture.weights.tolist(), strict=True
    ):
        total = sum(row[place] for place in rest)
        for place in range(7):
            wanted = total * shares[rest.index(place)] if place in rest else row[place]
            assert spread[place] == pytest.approx(wanted, abs=1e-9)


def test_a_mixture_of_no_models_changes_nothing() -> None:
    every = Row(torch.arange(3), torch.tensor([[0.5, 0.25, 0.25]]))
    assert torch.equal(every.spread(every.of(torch.tensor([], dtype=torch.int64))).weights, every.weights.double())


def model(seed: int) -> Params:
    return {name: noise(*DIGITS.shapes[name], seed=seed).float() for name in DIGITS.names()}


def test_what_is_mixed_counts_by_the_sum_of_its_weights_and_each_of_it_has_the_slope_of_the_mixture() -> None:
    """Six clients: 2 is sent the model of 0, one mixture of 1, 3 and 5, and nothing of 4."""
    own, other, mixture = model(2), model(0), model(9)
    shares, seen = torch.tensor([[1.0, 2.0, 1.0, 0.5, 3.0, 1.0]]), noise(5, L, 8).float()
    peers = Peers(DIGITS, torch.device("cpu"), 2, own, {0: other}, [1, 3, 5], mixture, seen, shares)
    assert peers.allowed.tolist() == [[1.0, 2.0, 1.0, 0.5, 0.0, 1.0]]
    assert torch.equal(peers.seen[[0, 1, 2, 3, 5]], seen)
    assert not peers.seen[4].any()
    weights = noise(1, L, 6, seed=4).softmax(-1).requires_grad_()
    mixed, direction = peers.mix(weights.detach()), model(7)
    total = torch.zeros((), dtype=torch.float64)
    for name, found in mixed.items():
        row = weights[0, GROUPS.index(name.rpartition(".")[0])]
        slowly = row[2] * own[name].double() + row[0] * other[name] + (row[1] + row[3] + row[5]) * mixture[name]
        assert torch.allclose(found.double(), slowly.detach().double(), atol=1e-5), name
        total = total + (slowly * direction[name].double()).sum()
    (slopes,) = torch.autograd.grad(total, weights)
    found = peers.inner(direction)
    assert torch.allclose(found, slopes.double(), rtol=1e-4, atol=1e-3)
    assert not found[..., 4].any()


def test_without_a_mixture_those_that_are_not_sent_have_no_part() -> None:
    seen, shares = noise(2, L, 8).float(), torch.ones(1, 4)
    peers = Peers(DIGITS, torch.device("cpu"), 1, model(1), {3: model(3)}, [], {}, seen, shares)
    assert peers.allowed.tolist() == [[0, 1, 0, 1]]
    assert not peers.seen[[0, 2]].any()
    row = noise(1, L, 4, seed=4).softmax(-1)
    for name, found in peers.mix(row).items():
        weights = row[0, GROUPS.index(name.rpartition(".")[0])]
        assert torch.allclose(found, (weights[1] * model(1)[name] + weights[3] * model(3)[name]).float(), atol=1e-5)


@pytest.mark.parametrize("unit", ["layer", "body", "model"])
def test_until_a_meta_step_it_is_as_if_their_models_were_sent(federate: Federate, unit: str) -> None:
    """A client's row chose the peers and mixes the others, so that nothing is lost by not sending their models."""
    common = {**TRANSPORTS[0], "clients": 7, "num_server_rounds": 3, "fedham.meta-steps": 0, "fedham.unit": unit}
    every = federate(**common, **{"fedham.peers": 0})
    for peers, rest, near in ((2, True, True), (1, True, True), (2, False, False)):
        few = federate(**common, **{"fedham.peers": peers, "fedham.mixed-rest": rest})
        apart = max((few.state[f"bank/{g}"] - every.state[f"bank/{g}"]).abs().max() for g in GROUPS)
        assert apart < 2e-4 if near else apart > 1e-2, (peers, rest, apart)


@pytest.mark.parametrize("unit", ["layer", "body", "model"])
def test_the_weights_that_are_told_are_those_that_a_client_started_from(
    federate: Federate, monkeypatch: pytest.MonkeyPatch, unit: str
) -> None:
    starts: dict[tuple[int, str], Params] = {}
    train = FedHAMClient.train

    def watched(self: FedHAMClient, start: Params) -> Outcome:
        if self.job.stage is TRAIN:
            starts[self.job.download.round, self.job.client] = {name: tensor.clone() for name, tensor in start.items()}
        return train(self, start)

    monkeypatch.setattr(FedHAMClient, "train", watched)
    given = {**FEW, "fedham.unit": unit, "fedham.learning-rate": 0.1, "fedham.prior-penalty": 0.0, "clients": 7}
    first = federate(**given, num_server_rounds=2)
    second = federate(**given, num_server_rounds=3)
    frame = read_weights(second.path).to_pandas()
    for group in GROUPS:
        before = first.state[f"bank/{group}"].double()
        for client in range(7):
            some = frame[(frame["round"] == 3) & (frame["client"] == str(client)) & (frame["group"] == group)]
            row = torch.tensor([float(some[some["peer"] == str(j)]["weight"].sum()) for j in range(7)]).double()
            assert float(row.sum()) == pytest.approx(1, abs=1e-5)
            assert bool((row > 0).all())
            start = starts[3, str(client)]
            wanted = torch.cat([start[f"{group}.weight"].reshape(-1), start[f"{group}.bias"]]).double()
            assert torch.allclose(row @ before, wanted, rtol=0, atol=1e-4), (group, client)
