"""B2 of FedHAM: training one's own model through the hybrid, against a loop that does just that; and meta data."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from test_fedham_rounds import TRANSPORTS, L
from torch.func import functional_call
from torch.nn.functional import cross_entropy

from clients.fedham import FedHAMClient
from fedham_flwr import models
from fedham_flwr.core.parameters import Params
from fedham_flwr.core.seeding import torch_stream
from fedham_flwr.data.batches import to_float
from fedham_flwr.federation.contract import Outcome
from fedham_flwr.federation.stages import TRAIN
from fedham_flwr.mixing import meta_models
from fedham_flwr.reporting.mixing_weights import latest, read_weights
from fedham_flwr.training.through import Hybrid

Federate = Callable[..., Any]
EPOCHS, RATE, MOMENTUM = 3, 0.02, 0.9
GROUPS = ("conv1", "conv2", "fc1", "fc2")


@pytest.mark.parametrize("decay", [0.0, 0.05])
def test_b2_descends_the_own_model_through_the_hybrid(
    federate: Federate, monkeypatch: pytest.MonkeyPatch, decay: float
) -> None:
    seen: list[tuple[Params, Params, Mapping[str, float], Params, Any]] = []
    start, train = meta_models.initial, FedHAMClient.train
    monkeypatch.setattr(
        meta_models, "initial", lambda *given: start(*given) | {"gate": torch.tensor([0.5, -0.5, 0.0, 1.0])}
    )

    def watched(self: FedHAMClient, hybrid: Params) -> Outcome:
        assert isinstance(hybrid, Hybrid)
        outcome = train(self, hybrid)
        seen.append((hybrid.own, hybrid, hybrid.beta, outcome.send, self.parts[0]))
        return outcome

    monkeypatch.setattr(FedHAMClient, "train", watched)
    federate(
        **TRANSPORTS[0], batch_size=1000, local_epochs=EPOCHS, learning_rate=RATE, momentum=MOMENTUM,
        weight_decay=decay, **{"fedham.base-objective": "own", "fedham.meta-steps": 0},
    )  # fmt: skip
    assert len(seen) == 3 * 4  # with the closing evaluation, whose training is forgotten
    for before, hybrid, beta, own, data in seen[4:]:  # from the second round on the peers differ
        assert any(not torch.equal(before[name], hybrid[name]) for name in before)
        wanted = trained_through(before, hybrid, beta, data, decay)
        for name, tensor in wanted.items():
            assert torch.allclose(own[name], tensor, atol=2e-5), name
            assert not torch.allclose(own[name], before[name], atol=1e-4), name


def trained_through(own: Params, hybrid: Params, share: Mapping[str, float], data: Any, decay: float) -> Params:
    """SGD on w of L(beta w + (1 - beta) c), with h made anew at each step; one batch an epoch."""
    network = models.build("digits-cnn", (1, 8, 8), 10, 0)
    common = {name: (hybrid[name] - share[name] * own[name]) / (1 - share[name]) for name in own}
    w = {name: tensor.clone().requires_grad_() for name, tensor in own.items()}
    optimizer = torch.optim.SGD(w.values(), lr=RATE, momentum=MOMENTUM, weight_decay=decay)
    index = data.splits["train"]
    x, y = to_float(data.features[index]), data.labels[index]
    for _ in range(EPOCHS):
        h = {name: share[name] * tensor + (1 - share[name]) * common[name] for name, tensor in w.items()}
        optimizer.zero_grad()
        cross_entropy(functional_call(network, h, x), y).backward()
        optimizer.step()
    return {name: tensor.detach() for name, tensor in w.items()}


def test_b2_with_a_gate_of_zero_learns_nothing(federate: Federate, monkeypatch: pytest.MonkeyPatch) -> None:
    start = meta_models.initial
    monkeypatch.setattr(meta_models, "initial", lambda *given: start(*given) | {"gate": torch.full((L,), -1e4)})
    run = federate(**TRANSPORTS[0], samples_per_client=64, **{"fedham.base-objective": "own", "fedham.meta-steps": 0})
    rows = {(row.round, row.client): row.value for row in run.rows if row[2:6] == ("test", "personal", "after", "loss")}
    assert rows[1, "0"] == rows[2, "0"] == rows[3, "0"]


@pytest.mark.parametrize(("objective", "peers"), [("own", 0), ("hybrid", 0), ("hybrid", 1)])
def test_what_training_added_is_from_where_it_began(federate: Federate, objective: str, peers: int) -> None:
    """R (w_i - start_i) of the second round: it began at the client's own model with B2, and with B1 at its mixture.

    Less the mean of all four, and of length 1.
    """
    given = {"fedham.base-objective": objective, "fedham.update-momentum": 0.0, "fedham.peers": peers}
    first, second = (federate(**TRANSPORTS[0], **given, num_server_rounds=rounds) for rounds in (1, 2))
    frame = read_weights(second.path).to_pandas()
    for at, group in enumerate(GROUPS):
        before, after = (run.state[f"bank/{group}"].double() for run in (first, second))
        draw = torch_stream(0, "projection", client=group)
        signs = torch.randint(0, 2, before.shape[1:], generator=draw) * 2 - 1
        moved = torch.zeros(4, 64, dtype=torch.float64)
        for i in range(4):
            some = frame[(frame["round"] == 2) & (frame["client"] == str(i)) & (frame["group"] == group)]
            row = torch.tensor([float(some[some["peer"] == str(j)]["weight"].sum()) for j in range(4)]).double()
            start = before[i] if objective == "own" else row @ before
            moved[i].index_add_(0, torch.arange(len(start)) % 64, signs * (after[i] - start))
        apart = moved - moved.mean(0)
        assert apart.norm(dim=1).min() > 1e-2
        wanted = apart / apart.norm(dim=1, keepdim=True)
        assert torch.allclose(second.state["added"][:, at], wanted, rtol=0, atol=1e-4), group


# ---- meta data -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "share"), [("held-out", 0.2), ("held-out", 0.5), ("fresh", 0.2), ("shared", 0.2)])
def test_meta_data_are_apart_from_training_data_unless_they_are_shared(
    federate: Federate, monkeypatch: pytest.MonkeyPatch, kind: str, share: float
) -> None:
    parts: dict[tuple[str, int], tuple[set[int], set[int], set[int]]] = {}
    train = FedHAMClient.train

    def watched(self: FedHAMClient, start: Params) -> Outcome:
        if self.job.stage is not TRAIN:
            return train(self, start)
        base, meta = (set(data.splits["train"].tolist()) for data in self.parts)
        parts[self.job.client, self.job.download.round] = base, meta, set(self.job.data.splits["train"].tolist())
        for data in self.parts:
            assert all(data.splits[s] is self.job.data.splits[s] for s in ("validation", "test"))
        return train(self, start)

    monkeypatch.setattr(FedHAMClient, "train", watched)
    given = {"fedham.meta-data": kind, "fedham.meta-share": share, "fedham.meta-steps": 1}
    federate(**TRANSPORTS[0], num_server_rounds=3, samples_per_client=64, **given)
    assert len(parts) == 3 * 4
    for base, meta, all_ in parts.values():
        assert base | meta == all_
        assert base & meta == (all_ if kind == "shared" else set())
        assert len(meta) == (len(all_) if kind == "shared" else max(1, round(share * len(all_))))
    for client in map(str, range(4)):
        held = [frozenset(parts[client, number][1]) for number in (1, 2, 3)]
        assert len(set(held)) == (3 if kind == "fresh" else 1)


def test_a_client_with_one_training_sample_has_the_same_for_both(federate: Federate) -> None:
    run = federate(**TRANSPORTS[0], partitioner="iid", samples_per_client=2, validation_fraction=0.0, test_fraction=0.5)
    assert run.summary["failures"] == 0


def test_with_shared_meta_data_and_no_penalty_the_gate_drifts_to_the_own_model(federate: Federate) -> None:
    """Clients with 30 samples each of the same data: one's own model fits them best, but is not the best model."""
    few = {"partitioner": "iid", "samples_per_client": 60, "validation_fraction": 0.0, "test_fraction": 0.5}
    own = {}
    for kind, rho in (("held-out", 0.0), ("shared", 0.0), ("shared", 0.05)):
        given = {"fedham.meta-data": kind, "fedham.prior-penalty": rho, "fedham.meta-share": 0.3}
        run = federate(clients=4, num_server_rounds=4, local_epochs=5, batch_size=10, **few, **TRANSPORTS[0], **given)
        own[kind, rho] = latest(read_weights(run.path)).weights.diagonal(dim1=0, dim2=2).mean()
    assert own["shared", 0.0] > own["held-out", 0.0] + 0.1
    assert own["shared", 0.0] > own["shared", 0.05] + 0.1
