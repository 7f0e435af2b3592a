"""FedHAM and AMN as federations: their ends, their three transports side by side, what is sent, frozen halves."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.app import Message
from test_pfedla_rounds import scores
from torch import Tensor

from clients.fedham import FedHAMClient
from fedham_flwr import models
from fedham_flwr.algorithms.fedham import FedHAMSettings
from fedham_flwr.core.parameters import Manifest
from fedham_flwr.core.seeding import torch_stream
from fedham_flwr.federation.record_values import tensors as read_tensors
from fedham_flwr.mixing import meta_models
from fedham_flwr.reporting.mixing_weights import latest, read_weights
from fedham_flwr.runners.in_process import InProcessGrid
from fedham_flwr.settings import Value
from fedham_flwr.training.trainer import Trainer

Federate = Callable[..., Any]
DIGITS = Manifest.of(models.build("digits-cnn", (1, 8, 8), 10, 0))
P, L, D = 13_706, 4, 64
"""Scalars and layer groups of the digits' network; size of a feature."""
TRANSPORTS = ({"strategy": "fedham", "fedham.transport": "peers"},
              {"strategy": "fedham", "fedham.transport": "mediated"},
              {"strategy": "amn", "amn.unit": "layer"})  # fmt: skip
every_transport = pytest.mark.parametrize("transport", TRANSPORTS, ids=["peers", "mediated", "amn"])


def key(transport: dict[str, Value], name: str, value: Value) -> dict[str, Value]:
    """The settings of a transport with one more of its method."""
    return {**transport, f"{transport['strategy']}.{name}": value}


@pytest.fixture
def federate(federate: Federate) -> Federate:
    return partial(federate, samples_per_client=64)


class Watching(InProcessGrid):
    """Keeps every message and reply."""

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self.seen: list[Message] = []

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        messages = list(messages)
        self.seen += messages
        return super().push_messages(messages)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        replies = list(super().pull_messages(message_ids))
        self.seen += replies
        return replies


# ---- the ends (invariant 2 of the specification) -------------------------------------------------------------------


def unlearned(transport: dict[str, Value]) -> dict[str, Value]:
    """The transport with meta-models that start with equal weights and stay as they start."""
    return key(key(transport, "learning-rate", 0.0), "initial-temperature", 0.0)


@every_transport
def test_2_with_gates_of_one_it_is_local_training_bit_for_bit(
    federate: Federate, federated: Federate, monkeypatch: pytest.MonkeyPatch, transport: dict[str, Value]
) -> None:
    local, start = federated(strategy="local", samples_per_client=64), meta_models.initial
    monkeypatch.setattr(meta_models, "initial", lambda *given: start(*given) | {"gate": torch.full((L,), 1e4)})
    shared = {"fedham.meta-data": "shared"} if transport["strategy"] == "fedham" else {}
    assert scores(federate(**unlearned(transport), **shared)) == scores(local)


@every_transport
def test_2_with_equal_weights_and_equal_shares_it_is_fedavg(
    federate: Federate, federated: Federate, equal_shares: dict[str, Value], transport: dict[str, Value]
) -> None:
    shared = {"fedham.meta-data": "shared"} if transport["strategy"] == "fedham" else {}
    mixed, average = (
        federate(**unlearned(transport), **equal_shares, **shared),
        federated(strategy="fedavg", **equal_shares),
    )
    weights = latest(read_weights(mixed.path)).weights
    assert torch.allclose(weights, torch.full((4, L, 4), 0.25), atol=1e-6)
    for name, tensor in average.state.items():
        mean = sum(bank_tensor(mixed, client, name) for client in range(4)) / 4
        assert torch.allclose(mean, tensor, atol=1e-5), name


@pytest.fixture(scope="module")
def equal_shares(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Value]:
    """Four clients with as many digits each: 240 of them."""
    data = write_digits(tmp_path_factory.mktemp("equal"), clients=4, images=240, opposed=False)
    return {"dataset": data["dataset"], "partitioner": "iid", "samples_per_client": 0}


def bank_tensor(run: Any, client: int, name: str) -> Tensor:
    group = name.rpartition(".")[0]
    weight = torch.Size(DIGITS.shapes[f"{group}.weight"]).numel()
    row = run.state[f"bank/{group}"][client]
    return (row[:weight] if name.endswith("weight") else row[weight:]).view(DIGITS.shapes[name])


def write_digits(folder: Path, clients: int, images: int, opposed: bool) -> dict[str, Value]:
    """Digits dealt evenly to clients c0, c1, ...; opposed: the second half of them has label 9 - y for y."""
    import datasets
    import numpy as np
    from sklearn.datasets import load_digits

    datasets.disable_progress_bars()
    digits = load_digits()
    chosen = np.random.default_rng(0).permutation(len(digits.target))[:images]
    owner = np.arange(images) % clients
    turned = opposed & (owner >= clients // 2)
    labels = np.where(turned, 9 - digits.target[chosen], digits.target[chosen])
    kinds = {"image": datasets.Image(), "label": datasets.ClassLabel(10), "client": datasets.Value("string")}
    pixels = (digits.images[chosen] * 15.9).astype(np.uint8)
    table = {"image": list(pixels), "label": labels.tolist(), "client": [f"c{c}" for c in owner]}
    (folder / "even").mkdir()
    datasets.Dataset.from_dict(table, features=datasets.Features(kinds)).to_parquet(folder / "even" / "train.parquet")
    return {"dataset": str(folder / "even"), "partitioner": "natural", "client-column": "client"}


# ---- one mathematics, three transports -----------------------------------------------------------------------------


ALIKE: list[dict[str, Value]] = [
    {"learning-rate": 0.05},
    {"learning-rate": 3.0, "optimizer": "sgd"},
    {"learning-rate": 0.05, "unit": "body", "features-of": "head", "initial-temperature": 3.0},
]


@pytest.mark.parametrize("own", ALIKE)
def test_7_mediated_and_hosted_by_the_server_are_the_same_method(federate: Federate, own: dict[str, Value]) -> None:
    """The meta-model is on the client in one and on the server in the other: same weights, same models.

    A cap on what counts in a mean does not change how many steps a client has made.
    """
    common = {"num_server_rounds": 4, "evaluate_every": 2, "fraction_train": 0.75, "max_examples_per_client": 30}
    mediated = federate(**common, **{**TRANSPORTS[1], **{f"fedham.{key}": value for key, value in own.items()}})
    hosted = federate(**common, **{**TRANSPORTS[2], **{f"amn.{key}": value for key, value in own.items()}})
    one, other = (read_weights(run.path).to_pandas() for run in (mediated, hosted))
    places = ["round", "client", "group", "peer"]
    assert (one[places].astype(str) == other[places].astype(str)).all(axis=None)
    assert abs(one["weight"] - other["weight"]).max() < 1e-4
    assert one["weight"].max() - one["weight"].min() > 0.1  # and they have moved
    for name in (n for n in mediated.state if n.startswith("bank/")):
        assert torch.allclose(mediated.state[name], hosted.state[name], atol=1e-3), name


def test_7_one_meta_step_of_peers_is_the_step_of_the_server(federate: Federate) -> None:
    """One full batch for meta step and training alike: h_i - wt_i is the gradient times the learning rate."""
    batch = {"batch_size": 1000, "momentum": 0.0, "learning_rate": 0.02, "num_server_rounds": 2}
    peers = {"fedham.meta-steps": 1, "fedham.meta-batch-size": 1000, "fedham.meta-data": "shared"}
    plain = {"fedham.optimizer": "sgd", "fedham.learning-rate": 1.0, "fedham.prior-penalty": 0.0}
    # the server's step follows the second round, the peers' step comes before its base phase
    first = federate(**batch, **TRANSPORTS[0], **peers, **plain)
    second = federate(**batch, **TRANSPORTS[2], **{"amn.optimizer": "sgd", "amn.learning-rate": 1.0})
    for client, context in enumerate(first.grid.contexts.values()):
        psi = {n: t for n, t in read_tensors(context.state.array_records["personal"]).items() if n.startswith("meta/")}
        assert psi.keys() == {n for n in second.state if n.startswith("meta/")}
        start = meta_models.initial(FedHAMSettings(), L, 4, torch_stream(0, "meta-model", client=str(client)))
        for name, tensor in psi.items():
            moved, hosted = (t - start[name.removeprefix("meta/")] for t in (tensor[0], second.state[name][client]))
            assert torch.allclose(moved, hosted, rtol=0, atol=1e-3 * float(hosted.abs().max()) + 1e-7), name
        assert float((psi["meta/key"][0]).abs().max()) > 1e-5


# ---- frozen halves ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("objective", ["hybrid", "own"])
def test_6_each_half_is_frozen_bit_for_bit_while_the_other_learns(
    federate: Federate, monkeypatch: pytest.MonkeyPatch, objective: str
) -> None:
    seen: dict[str, list[tuple[dict[str, Tensor], dict[str, Tensor]]]] = {"meta": [], "base": []}
    step, fit = FedHAMClient._meta_step, Trainer.fit
    clients: list[FedHAMClient] = []

    def watched(self: FedHAMClient, pool: Any, model: Any, prior: Any, generator: Any) -> None:
        clients.append(self)
        before = {n: t.clone() for n, t in model.items()} | {n: a.clone() for n, a in pool.bank.arrays.items()}
        psi = copies(self.meta.state_dict())
        step(self, pool, model, prior, generator)
        seen["meta"].append((before, {**model, **pool.bank.arrays}))
        assert pool.seen.abs().max() == 0 or not same(psi, self.meta.state_dict())

    def fitted(self: Trainer, *given: Any) -> float:
        psi = copies(clients[-1].meta.state_dict())
        loss = fit(self, *given)
        seen["base"].append((psi, clients[-1].meta.state_dict()))
        return loss

    monkeypatch.setattr(FedHAMClient, "_meta_step", watched)
    monkeypatch.setattr(Trainer, "fit", fitted)
    federate(**TRANSPORTS[0], **{"fedham.base-objective": objective})
    assert len(seen["meta"]) == 3 * 4 * 5  # two rounds and the closing evaluation
    assert len(seen["base"]) >= 2 * 4
    assert all(same(before, after) for pairs in seen.values() for before, after in pairs)


def copies(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in tensors.items()}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(tensor, other[name]) for name, tensor in one.items())


# ---- what is sent ----------------------------------------------------------------------------------------------------


def test_bytes_of_peers_are_those_of_the_formula(federate: Federate) -> None:
    """Down M P and projections, of its own model too; up P and the row; M is all others, or as many as are wanted.

    Who gets few is asked which, by all projections; with them comes one model that the others are mixed into.
    """
    for peers, rest, models_sent, looked_at in ((0, True, 5, 6), (2, True, 3, 6), (2, False, 2, 3), (5, True, 5, 6)):
        few = {"fedham.peers": peers, "fedham.mixed-rest": rest}
        run = federate(clients=6, **TRANSPORTS[0], **few, **{"fedham.meta-steps": 1})
        assert [r["kind"] for r in run.records].count("query") == (3 if peers == 2 else 0)
        for record in run.records:
            trained_ = P if record["kind"] == "train" else 0
            models = (0, 6) if record["kind"] == "query" else (models_sent, looked_at)
            assert record["bytes-down"] == 6 * (4 * (models[0] * P + models[1] * L * D) + 6)  # and who may be mixed
            assert record["bytes-up"] == 6 * 4 * (trained_ + L * 6)


def test_bytes_of_mediated_are_those_of_the_formula(federate: Federate) -> None:
    """Down P + N L d + N L (no scores before the first training), up P + N L, over both exchanges of a round."""
    run, n = federate(clients=6, **TRANSPORTS[1]), 6
    assert [(r["round"], r["kind"]) for r in run.records] == [
        (1, "query"), (1, "train"), (2, "query"), (2, "train"), (3, "query"), (3, "evaluate"),
    ]  # fmt: skip
    down, up = ([r[f"bytes-{way}"] for r in run.records] for way in ("down", "up"))
    assert down[2] + down[3] == n * (4 * (P + n * L * D + n * L) + n)  # and who may be mixed
    assert up[2] + up[3] == n * 4 * (P + n * L)
    assert down[0] + down[1] == n * (4 * (P + n * L * D) + n)
    assert run.summary["bytes"]["query"] == {"up": sum(up[::2]), "down": sum(down[::2])}


def test_bytes_of_amn_are_one_model_each_way(federate: Federate) -> None:
    run = federate(clients=6, strategy="amn")
    assert {(r["kind"], r["bytes-down"], r["bytes-up"]) for r in run.records} == {
        ("train", 6 * 4 * P, 6 * 4 * P),
        ("evaluate", 6 * 4 * P, 0),
    }


@pytest.mark.parametrize("transport", TRANSPORTS[:2], ids=["peers", "mediated"])
def test_the_meta_model_and_the_models_of_peers_stay_where_they_should(
    federate: Federate, transport: dict[str, Value]
) -> None:
    run = federate(**transport, grid=Watching)
    sent = [set(record) for m in run.grid.seen for record in m.content.array_records.values()]
    assert not {name for names_ in sent for name in names_ if name.startswith(("meta/", "seen/"))}
    extras = {n for m in run.grid.seen if "extras" in m.content.array_records for n in m.content["extras"]}
    if transport is TRANSPORTS[1]:
        assert extras == {"projections", "shares", "scores", "row"}
    else:
        models = {f"{peer}/{name}" for peer in range(4) for name in DIGITS.names()}
        assert extras == {"row", "projections", "shares"} | models
        for m in run.grid.seen:  # nobody is sent its own model again
            if m.metadata.message_type == "train" and "facts" in m.content.config_records:
                place = m.content["facts"]["place"][0]
                assert not {n for n in m.content["extras"] if n.startswith(f"{place}/")}


# ---- whom to learn from ----------------------------------------------------------------------------------------------


@every_transport
@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in (1, 2))])
def test_9_clients_attend_to_those_whose_labels_mean_the_same(
    federate: Federate, tmp_path: Path, transport: dict[str, Value], seed: int
) -> None:
    """Six clients, the second half with opposite labels: 2 of 5 peers are alike, so 0.4 would be no preference."""
    data = write_digits(tmp_path, clients=6, images=1200, opposed=True)
    rounds = 10 if transport is TRANSPORTS[0] else 4
    given = {"num_server_rounds": rounds, "batch_size": 10, "samples_per_client": 0}
    run = federate(clients=6, **transport, **data, **given, seed=seed)
    weights = latest(read_weights(run.path)).weights.mean(1)
    alike = torch.arange(6)[:, None] // 3 == torch.arange(6) // 3
    own = weights.diagonal()
    inside = ((weights * alike).sum(1) - own) / (1 - own)
    assert float(inside.mean()) > 0.6, f"{inside.mean():.3f} of the attention is inside, {own.mean():.3f} on oneself"
    assert float(own.mean()) < 0.999
