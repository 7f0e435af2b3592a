"""AMN: its settings, and its server half against a naive one of loops and autograd."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from presets import planned
from test_fedham import rows_slowly
from torch import Tensor

from fedham_flwr.algorithms.amn import AMNSettings
from fedham_flwr.core.parameters import LayerGroup, Manifest, Params
from fedham_flwr.core.seeding import torch_stream
from fedham_flwr.federation.contract import Task
from fedham_flwr.federation.messages import Upload
from fedham_flwr.server_app import build_strategy
from fedham_flwr.settings import Value, parse
from strategies.amn import AMNStrategy

GROUPS = (LayerGroup("conv", ("a", "b")), LayerGroup("fc", ("c",)))
MANIFEST = Manifest(GROUPS, {"a": (2, 3), "b": (2,), "c": (4,)}, dict.fromkeys("abc", torch.float32))
D, K, RATE, SEED, MOMENTUM, DISCOUNT = 5, 3, 0.05, 11, 0.7, 0.3


def drawn(seed: int) -> Params:
    draw = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=draw) for name, shape in MANIFEST.shapes.items()}


def server(clients: tuple[str, ...], **given: Value) -> AMNStrategy:
    small = {"feature_dim": D, "key_dim": K, "learning_rate": RATE, "optimizer": "sgd", "max_logit_step": 0.0} | given
    keys: dict[str, Value] = {f"amn.{name.replace('_', '-')}": value for name, value in small.items()}
    training: dict[str, Value] = {"local-epochs": 3, "batch-size": 8, "learning-rate": 0.1, "momentum": 0.5}
    parsed = parse({"strategy": "amn", "device": "cpu", "seed": SEED, **training, **keys})
    made = build_strategy(parsed, MANIFEST, drawn(0), Task((1, 8, 8), 10))
    made.add_clients(clients)
    return made


def moved(starts: dict[str, Params], seed: int) -> dict[str, Upload]:
    """What clients send that have trained a random way from where they started."""
    uploads = {}
    for client, start in starts.items():
        step = drawn(1000 * seed + int(client))
        after = {name: t + 0.3 * step[name] for name, t in start.items()}
        uploads[client] = Upload(client, after, 10 + 7 * int(client), ())
    return uploads


# ---- a naive server --------------------------------------------------------------------------------------------------


class Naive:
    """The identity card word by word: models in a dictionary, features by loops, gradients by autograd."""

    def __init__(
        self, clients: tuple[str, ...], unit: str, meta: str, psi: dict[str, Params], looks: str, reference: str
    ) -> None:
        self.models = {client: {n: t.double() for n, t in drawn(0).items()} for client in clients}
        self.added = {client: {group.name: torch.zeros(D).double() for group in GROUPS} for client in clients}
        self.unit, self.meta, self.psi, self.looks, self.reference = unit, meta, psi, looks, reference
        self.samples: dict[str, int] = {}  # of those that have trained
        self.late = dict.fromkeys(clients, 0.0)  # how many times as many as all have trained since

    def shares(self) -> list[float]:
        """What of a mean each client is, whoever has not trained as one that has as many samples as they on average."""
        mean = sum(self.samples.values()) / max(1, len(self.samples))
        counts = [self.samples[client] / mean if client in self.samples else 1.0 for client in self.models]
        return [count * DISCOUNT**late for count, late in zip(counts, self.late.values(), strict=True)]

    def units(self) -> list[list[LayerGroup]]:
        return [list(GROUPS)] if self.unit == "model" else [[group] for group in GROUPS]

    def projected(self, model: Params, group: LayerGroup) -> Tensor:
        """R of a layer group's parameters [D], scalar by scalar."""
        flat, p = torch.cat([model[n].flatten() for n in group.names]), torch.zeros(D, dtype=torch.float64)
        draw = torch_stream(SEED, "projection", client=group.name)
        signs = (torch.randint(0, 2, (len(flat),), generator=draw) * 2 - 1).tolist()
        for column, scalar in enumerate(flat.tolist()):
            p[column % D] += signs[column] * scalar
        return p

    def features(self) -> Tensor:
        """(7): R w_j, or the way in which training went, less the pool's mean or R of the start [N, L, d]."""
        first = {n: t.double() for n, t in drawn(0).items()}
        p = torch.zeros(len(self.models), len(self.units()), D, dtype=torch.float64)
        for j, (client, model) in enumerate(self.models.items()):
            for unit, groups in enumerate(self.units()):
                for group in {"own": groups, "head": GROUPS[-1:], "all": GROUPS}[self.looks]:
                    if self.reference == "update":
                        p[j, unit] += one_long(self.added[client][group.name])
                    else:
                        less = first if self.reference == "start" else {n: 0 * t for n, t in first.items()}
                        p[j, unit] += self.projected({n: t - less[n] for n, t in model.items()}, group)
        return p if self.reference == "start" else p - p.mean(0)

    def rows(self, client: str, psi: Params) -> Tensor:
        p, own = self.features(), list(self.models).index(client)
        p = torch.where(p.abs() < 1e-12, 0.0, p)  # equal models
        return rows_slowly(psi, p, own, self.shares(), self.meta, self.psi[client])

    def mix(self, row: Tensor) -> Params:
        start: Params = {}
        for weights, groups in zip(row, self.units(), strict=True):
            for name in (name for group in groups for name in group.names):
                start[name] = sum(w * m[name] for w, m in zip(weights, self.models.values(), strict=True))  # type: ignore[assignment]
        return start

    def merge(self, uploads: dict[str, Upload]) -> None:
        """R5, R6: descend <h_i(psi_i), h_i - wt_i> / (eta K), h_i - wt_i constant; then the new models."""
        new, changes = {}, {}
        for client, upload in uploads.items():
            psi = {name: tensor.clone().requires_grad_() for name, tensor in self.psi[client].items()}
            start, before = self.mix(self.rows(client, psi)), self.mix(self.rows(client, self.psi[client]))
            steps = {n: t.double() - before[n] for n, t in upload.params.items()}
            changes[client] = {group.name: self.projected(steps, group) for group in GROUPS}
            reach = 0.1 * 3 * math.ceil(upload.examples / 8) / (1 - 0.5)
            surrogate = sum((start[n] * (before[n] - upload.params[n].double()) / reach).sum() for n in start)
            slopes = torch.autograd.grad(surrogate, list(psi.values()), allow_unused=True)  # type: ignore[arg-type]
            for (name, tensor), slope in zip(psi.items(), slopes, strict=True):
                new[client, name] = tensor.detach() - RATE * (0 if slope is None else slope)
        for (client, name), tensor in new.items():
            self.psi[client][name] = tensor
        for group in (group.name for group in GROUPS):
            mean = sum(change[group] for change in changes.values()) / len(changes) if len(changes) > 2 else 0
            for client, change in changes.items():
                way = one_long(change[group] - mean)
                self.added[client] = self.added[client] | {group: MOMENTUM * self.added[client][group] + way}
        self.samples |= {client: up.examples for client, up in uploads.items()}
        turn = len(uploads) / len(self.late)
        self.late = {client: 0.0 if client in uploads else late + turn for client, late in self.late.items()}
        self.models |= {client: {n: t.double() for n, t in upload.params.items()} for client, upload in uploads.items()}


def one_long(p: Tensor) -> Tensor:
    """Of length 1, or 0."""
    length = math.sqrt(sum(x * x for x in p.tolist()))
    return p / length if length > 1e-9 else 0 * p


def meta_models(made: AMNStrategy) -> dict[str, Params]:
    """Of each client, as the server has them."""
    psi = {n.removeprefix("meta/"): t for n, t in made.state_dict().items() if n.startswith("meta/")}
    return {
        client: {n: t[i].double().clone() for n, t in psi.items()} for i, client in enumerate(made._pool.bank.clients)
    }


@pytest.mark.parametrize("meta", ["attention", "aghn"])
@pytest.mark.parametrize("unit", ["model", "layer"])
@pytest.mark.parametrize("looks", ["own", "head", "all"])
@pytest.mark.parametrize("reference", ["update", "mean", "start"])
@settings(max_examples=3)
@given(clients=st.integers(2, 4), bias=st.booleans(), seed=st.integers(0, 99), start=st.sampled_from([0.0, 3.0]))
def test_the_server_is_the_naive_one_of_loops(
    unit: str, looks: str, meta: str, reference: str, clients: int, bias: bool, seed: int, start: float
) -> None:
    ids = tuple(map(str, range(clients)))
    looked: dict[str, Value] = {"features_of": looks, "reference": reference, "update_momentum": MOMENTUM}
    looked["staleness_discount"] = DISCOUNT
    made = server(ids, unit=unit, meta=meta, peer_bias=bias, initial_temperature=start, **looked)
    naive, first = Naive(ids, unit, meta, meta_models(made), looks, reference), meta_models(made)
    for number, who in enumerate((ids, ids[1:], ids, ids[:1])):
        starts, weights = planned(made.plan(number + 1, who)), made.mixing_weights(number + 1, who, {})
        assert weights.groups == ("conv", "fc")
        for i, client in enumerate(who):
            row = naive.rows(client, naive.psi[client])
            assert torch.allclose(weights.weights[i].double(), row.expand(2, -1), rtol=0, atol=1e-5)
            wanted = naive.mix(row)
            assert all(torch.allclose(t.double(), wanted[n], rtol=0, atol=1e-4) for n, t in starts[client].items())
        uploads = moved(starts, seed + number)
        made.merge(number + 1, uploads)
        naive.merge(uploads)
        for client, psi in meta_models(made).items():
            for name, tensor in psi.items():
                assert torch.allclose(tensor, naive.psi[client][name], rtol=1e-4, atol=1e-5), (number, name)
                # from a common start nobody can tell the models apart
                assert number or torch.equal(tensor, first[client][name])
    assert any(not torch.equal(psi["gate"], first[client]["gate"]) for client, psi in meta_models(made).items())


@pytest.mark.parametrize("candidates", [0, 2])
def test_a_penalty_holds_rows_to_those_of_new_meta_models(candidates: int) -> None:
    ids, away = tuple(map(str, range(5))), {}
    for rho in (0.0, 10.0):
        held: dict[str, Value] = {
            "prior_penalty": rho,
            "optimizer": "normalised",
            "initial_temperature": 3.0,
            "sample_power": 0.0,
        }
        made: Any = server(ids, unit="layer", candidates=candidates, **held)
        for number in range(1, 9):
            made.merge(number, moved(planned(made.plan(number, ids)), number))
        rows = made.mixing_weights(9, ids, {}).dense()
        made._meta = type(made._meta)(made.own, 2)
        made._start(made._meta, ids)
        away[rho] = float((rows - made.mixing_weights(9, ids, {}).dense()).abs().max())
    assert away[10.0] < 0.7 * away[0.0], away


@pytest.mark.parametrize(
    ("missing", "setting", "value", "error"),
    [
        ("samples", "sample_power", 0.0, r"samples clients have is missing: amn\.sample-power=0 goes on"),
        ("ages", "staleness_discount", 1.0, r"late models are is missing: amn\.staleness-discount=1 goes on"),
    ],
)
def test_a_state_from_before_it_counted_says_how_to_go_on(missing: str, setting: str, value: float, error: str) -> None:
    state = {name: tensor for name, tensor in server(("0", "1")).state_dict().items() if name != missing}
    with pytest.raises(ValueError, match=error):
        server(()).load_state_dict(state)
    server((), **{setting: value}).load_state_dict(state)


# ---- settings --------------------------------------------------------------------------------------------------------


def test_a_client_has_one_row_for_the_whole_model_unless_each_layer_group_is_to_have_its_own() -> None:
    assert AMNSettings().unit == "model"
    ids = ("0", "1", "2")
    for chosen, units in (({}, 1), ({"unit": "layer"}, 2)):
        made: Any = server(ids, **chosen)
        for number in (1, 2, 3):
            made.merge(number, moved(planned(made.plan(number, ids)), number))
        assert len(made._projections.units) == units
        assert all(psi["gate"].shape == (units,) for psi in meta_models(made).values())
        rows = made.mixing_weights(4, ids, {}).weights
        assert rows.shape == (3, 2, 3)
        assert torch.equal(rows[:, 0], rows[:, 1]) == (units == 1)
