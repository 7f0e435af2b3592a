"""FedTP as federations: its ends, who is absent, and what goes wrong.

The numbers in names are those of the invariants that the method was specified with.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from faults import break_app, tampered, with_tensors
from flwr.app import Message
from presets import TINY_VIT, network
from test_pfedla_rounds import scores
from test_rounds import Shuffled
from torch import Tensor
from torch.nn.functional import cross_entropy

import strategies.fedtp as server_half
from fedham_flwr.algorithms import fedtp
from fedham_flwr.core.errors import UserError
from fedham_flwr.core.parameters import Params
from fedham_flwr.core.seeding import torch_stream
from fedham_flwr.data.batches import inputs_and_targets
from fedham_flwr.data.clients import open_partition
from fedham_flwr.federation.record_values import tensors as read_tensors
from fedham_flwr.generating.embeddings import Embeddings
from fedham_flwr.runners.in_process import InProcessGrid
from fedham_flwr.settings import Value, parse
from strategies.fedtp import FedTPStrategy

Federate = Callable[..., Any]
W = ("blocks.0.attention.to_qkv.weight", "blocks.1.attention.to_qkv.weight")
SIZE = 2 * 48 * 16
"""Scalars of W in the tests' network."""
SMALL: dict[str, Value] = {
    "fedtp.embedding-dim": 6, "fedtp.hidden-dim": 7, "fedtp.hidden-layers": 1, "fedtp.rank": 2,
    "fedtp.learning-rate": 0.1, "fedtp.embedding-learning-rate": 1.0,
}  # fmt: skip
FROZEN: dict[str, Value] = {**SMALL, "fedtp.learning-rate": 0.0, "fedtp.embedding-learning-rate": 0.0}
FEW: dict[str, Value] = {"samples_per_client": 64}
"""Of which a client trains on 42, in two batches."""
ALONE: dict[str, Value] = {"min_clients": 1, "partitioner": "iid", "samples_per_client": 150}


KILLED = tampered(break_app, client=2)


class Watching(InProcessGrid):
    """Keeps, of every message: kind, round, client, the tensors sent each way, and what the client remembers then."""

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self.seen: list[tuple[str, int, str, Params, Params, Params]] = []

    def _answer(self, message: Message) -> Message:
        reply = super()._answer(message)
        if message.metadata.message_type == "query":
            return reply
        context = self.contexts[message.metadata.dst_node_id]
        down, up = (read_tensors(m.content.array_records["tensors"]) for m in (message, reply))
        kept = read_tensors(context.state.array_records["personal"]) if "personal" in context.state else {}
        client, number = str(context.node_config["partition-id"]), int(message.metadata.group_id)
        self.seen.append((message.metadata.message_type, number, client, down, up, kept))
        return reply


@pytest.fixture
def states(monkeypatch: pytest.MonkeyPatch) -> list[tuple[tuple[str, ...], Params, Params]]:
    """Of every round: the cohort, and the server's state before and after it has learned."""
    found: list[tuple[tuple[str, ...], Params, Params]] = []
    merge = FedTPStrategy.merge

    def watched(self: FedTPStrategy, number: int, uploads: Any) -> None:
        before = state_of(self)
        merge(self, number, uploads)
        found.append((tuple(uploads), before, state_of(self)))

    monkeypatch.setattr(FedTPStrategy, "merge", watched)
    return found


def state_of(server: Any) -> Params:
    return {name: tensor.clone() for name, tensor in server.state_dict().items()}


def flat(params: Params) -> Tensor:
    return torch.cat([params[name].flatten() for name in W])


def shared(params: Params) -> Params:
    return {name: tensor for name, tensor in params.items() if name not in W}


def close(a: Params, b: Params, atol: float = 1e-6) -> bool:
    return a.keys() == b.keys() and all(torch.allclose(a[name], b[name], rtol=0, atol=atol) for name in a)


def equal(a: Params, b: Params) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


# ---- a look-up in place of the hypernetwork --------------------------------------------------------------------------


class LookUp:
    """h(z) = z: a client's embedding is its W, and the Jacobian is the identity."""

    start = torch.empty(0)

    def __init__(self, _how: Any, base: Params, *_: Any) -> None:
        self.params: Params = {}
        self.velocity: Params = {}
        self._shapes = {name: tensor.shape for name, tensor in base.items()}
        LookUp.start = flat(base)

    def generate(self, z: Tensor) -> list[Params]:
        parts = [row.split([shape.numel() for shape in self._shapes.values()]) for row in z]
        return [{n: p.view(s).clone() for (n, s), p in zip(self._shapes.items(), row, strict=True)} for row in parts]

    def step(self, _z: Tensor, slopes: Params) -> Tensor:
        return torch.cat([slope.flatten(1) for slope in slopes.values()], dim=1)


class Stored(Embeddings):
    """Embeddings that start as the model's own W."""

    def add(self, clients: Any, generators: Any) -> None:
        super().add(clients, generators)
        self.values[-len(clients) :] = LookUp.start


@pytest.fixture
def look_up(monkeypatch: pytest.MonkeyPatch) -> dict[str, Value]:
    """FedTP with a look-up, and a server that takes whole steps."""
    monkeypatch.setattr(server_half, "Generator", LookUp)
    monkeypatch.setattr(server_half, "Embeddings", Stored)
    whole_steps = {"embedding-learning-rate": 1.0, "momentum": 0.0, "weight-decay": 0.0, "embedding-dim": SIZE}
    return {f"fedtp.{name}": value for name, value in whole_steps.items()}


def test_2_with_a_look_up_and_one_client_a_round_it_is_vanilla(
    federate: Federate, look_up: dict[str, Value], states: list[Any]
) -> None:
    common = {"strategy": "fedtp", "num_server_rounds": 6, "fraction_train": 0.25, "grid": Watching, **FEW}
    looked = federate(**common, **look_up)
    stored, states[:] = list(states), []
    vanilla = federate(**common, **{"fedtp.personal": "vanilla"})
    own = dict.fromkeys("0123", LookUp.start)
    trained = [(client, kept) for kind, _, client, _, _, kept in vanilla.grid.seen if kind == "train"]
    assert len(trained) == len(stored) == 6
    assert 1 < len({client for client, _ in trained}) < 6  # some come again
    for (client, kept), (cohort, _, after), (_, _, other) in zip(trained, stored, states, strict=True):
        own[client] = flat(kept)
        assert cohort == (client,)
        assert torch.allclose(after["embeddings"], torch.stack(list(own.values())), rtol=0, atol=1e-6)
        assert close({name: tensor for name, tensor in after.items() if name.startswith("mean/")}, other)
        assert not torch.equal(own[client], LookUp.start)
    assert len(looked.rows) == len(vanilla.rows)
    for one, two in zip(looked.rows, vanilla.rows, strict=True):
        assert (one[:6], one.n) == (two[:6], two.n)
        assert one.value == pytest.approx(two.value, abs=1e-5)


def test_7_with_one_client_and_a_look_up_it_is_centralised_sgd_with_a_fresh_optimiser_each_round(
    federate: Federate, settings: Callable[..., dict[str, Value]], look_up: dict[str, Value], states: list[Any]
) -> None:
    given = {"strategy": "fedtp", "num_server_rounds": 3, "learning_rate": 0.05, "weight_decay": 0.01, **ALONE}
    federate(clients=1, **given, **look_up)
    data = open_partition(parse(settings(**given)).data(), 0, 1)
    model, index = network("fedtp"), data.splits["train"]
    for number, (_, _, after) in enumerate(states, start=1):
        params = list(model.parameters())
        velocities = [torch.zeros_like(param) for param in params]
        order = torch.randperm(len(index), generator=torch_stream(0, "batches", number, "0"))
        for batch in index[order].split(32):
            x, y = inputs_and_targets(data.features[batch], data.labels[batch])
            slopes = torch.autograd.grad(cross_entropy(model(x), y), params)
            for param, slope, velocity in zip(params, slopes, velocities, strict=True):
                velocity.mul_(0.9).add_(slope + 0.01 * param.detach())
                param.data.sub_(0.05 * velocity)
        wanted = model.state_dict()
        assert torch.allclose(after["embeddings"][0], flat(wanted), rtol=0, atol=1e-5)
        means = {name.removeprefix("mean/"): t for name, t in after.items() if name.startswith("mean/")}
        assert close(means, shared(wanted), 1e-5)
    assert len(states) == 3


# ---- the other ends --------------------------------------------------------------------------------------------------


def per_client(grid: Any) -> dict[str, list[Params]]:
    """What each client was sent, message by message."""
    return {client: [down for _, _, who, down, _, _ in grid.seen if who == client] for client in "0123"}


@pytest.mark.parametrize("rank", [0, 2])
def test_3_a_frozen_hypernetwork_gives_each_client_the_same_projections_in_every_round(
    federate: Federate, rank: int
) -> None:
    frozen = {**FROZEN, "fedtp.rank": rank}
    run = federate(strategy="fedtp", num_server_rounds=3, evaluate_every=1, grid=Watching, **FEW, **frozen)
    sent = per_client(run.grid)
    for downs in sent.values():
        assert len(downs) == 4
        assert all(torch.equal(down[name], downs[0][name]) for down in downs for name in W)
        for before, after in pairwise(downs):
            assert all(not torch.equal(tensor, before[name]) for name, tensor in shared(after).items())
    assert len({tuple(flat(downs[0]).tolist()) for downs in sent.values()}) == 4


def test_3_equal_embeddings_give_all_clients_one_frozen_attention(
    federate: Federate, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_half, "torch_stream", lambda seed, purpose, client="": torch_stream(seed, purpose))
    run = federate(strategy="fedtp", num_server_rounds=2, grid=Watching, **FEW, **FROZEN)
    (first, *_), *_ = per_client(run.grid).values()
    # not bit by bit: where in a product of matrices a row stands may decide on its last bit
    assert all(torch.allclose(flat(down), flat(first), rtol=0, atol=1e-6) for _, _, _, down, _, _ in run.grid.seen)


def test_4_with_nothing_personal_it_is_fedavg_bit_for_bit(federate: Federate, monkeypatch: pytest.MonkeyPatch) -> None:
    rounds = {"num_server_rounds": 3, "evaluate_every": 2, "fraction_train": 0.75, **FEW}
    average = federate(strategy="fedavg", **rounds, **TINY_VIT)
    monkeypatch.setattr(fedtp, "personal_groups", lambda *_: ())
    run = federate(strategy="fedtp", **rounds, **{"fedtp.personal": "vanilla"})
    assert equal(run.state, {f"mean/{name}": tensor for name, tensor in average.state.items()})
    # between rounds fedavg also scores the model after training of those who were absent
    mine = {row._replace(model="") for row in run.rows}
    assert mine == {row._replace(model="") for row in average.rows if row._replace(model="") in mine}
    assert len(mine) == len(run.rows) > 60
    assert {row.round for row in run.rows} == {1, 2, 3, 4}


def test_4_with_everything_personal_it_is_local_training_bit_for_bit(
    federate: Federate, monkeypatch: pytest.MonkeyPatch
) -> None:
    rounds = {"num_server_rounds": 3, "evaluate_every": 2, **FEW}
    local = federate(strategy="local", **rounds, **TINY_VIT)
    monkeypatch.setattr(fedtp, "personal_groups", lambda groups, _: groups)
    run = federate(strategy="fedtp", **rounds, **{"fedtp.personal": "vanilla"})
    assert scores(run) == scores(local)
    assert run.summary["bytes"] == local.summary["bytes"]
    assert run.summary["bytes"]["up"] == 0


# ---- who is absent, in which order, and what is refused --------------------------------------------------------------


def test_absent_clients_keep_their_embedding_and_its_velocity_bit_for_bit(
    federate: Federate, states: list[Any]
) -> None:
    federate(strategy="fedtp", num_server_rounds=5, fraction_train=0.5, **FEW, **SMALL)
    seen = set()
    for cohort, before, after in states:
        assert len(cohort) == 2
        for row, client in enumerate("0123"):
            moved = [not torch.equal(before[n][row], after[n][row]) for n in ("embeddings", "embeddings-velocity")]
            assert moved == [client in cohort] * 2
            seen |= {(client, client in cohort)}
    assert len(seen) == 8  # each client has been there, and has been absent


def test_the_order_in_which_replies_come_changes_no_bit(federate: Federate) -> None:
    runs = [federate(strategy="fedtp", grid=grid, **FEW, **SMALL) for grid in (InProcessGrid, Shuffled)]
    assert runs[0].summary["digest"] == runs[1].summary["digest"]


def test_a_cohort_of_one_works(federate: Federate) -> None:
    run = federate(clients=1, strategy="fedtp", **ALONE, **SMALL)
    assert {row.client for row in run.rows} == {"0"}
    assert run.state["embeddings"].shape == (1, 6)


@pytest.mark.parametrize("name", [W[1], "head.bias"])
def test_what_is_not_finite_is_refused_and_nothing_of_it_is_merged(
    federate: Federate, federated: Federate, name: str
) -> None:
    once = {"strategy": "fedtp", "num_server_rounds": 1, **FEW, **SMALL}
    absent = federated(client_app=KILLED, **once)
    for bad in (float("nan"), float("inf")):
        change = with_tensors(lambda tensors, bad=bad: tensors[name].fill_(bad))
        run = federate(client_app=tampered(change, client=2), **once)
        (failure,) = run.records[0]["failures"]
        assert (failure["client"], failure["error"]) == ("2", f"{name} holds NaN or infinity")
        assert equal(run.state, absent.state)


@pytest.mark.parametrize(
    ("key", "what", "other", "last"),
    [
        ("learning-rate", "hypernetwork", {"fedtp.hidden-layers": 3}, 1),
        ("embedding-learning-rate", "embeddings", {"fedtp.learning-rate": 0.0}, 4),
    ],
)
def test_a_server_that_diverges_names_the_setting_and_the_results_so_far_are_there(
    federate: Federate, tmp_path: Any, key: str, what: str, other: dict[str, Value], last: int
) -> None:
    """Each step makes 1e12 times as much of it, until float32 has no such number."""
    given = {**SMALL, **other, f"fedtp.{key}": 1e6, "fedtp.weight-decay": 1e6}
    message = rf"^the {what} diverged: lower fedtp\.{key}=1e\+06$"
    with pytest.raises(UserError, match=message):
        federate(strategy="fedtp", num_server_rounds=5, **FEW, **given)
    (path,) = (tmp_path / "results").glob("*/*")
    summary = json.loads((path / "summary.json").read_text())
    assert f"lower fedtp.{key}=1e+06" in summary["error"]
    assert {file.name for file in path.iterdir()} >= {"server.safetensors", "rounds.jsonl", "metrics"}
    assert {entry["round"] for entry in summary["final"]} == {last}


@pytest.mark.parametrize("model", ["auto", "digits-cnn"])
def test_a_model_without_self_attention_is_refused_before_anyone_trains(federate: Federate, model: str) -> None:
    with pytest.raises(
        UserError,
        match=rf'^strategy="fedtp" personalises self-attention, and model="{model}" has none: try model="vit"',
    ):
        federate(strategy="fedtp", model=model)
