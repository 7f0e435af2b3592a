"""The mathematics of meta-attention mixing; the numbers in the names are those of the method's invariants."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import one_hot

from fedham_flwr.algorithms import amn
from fedham_flwr.algorithms.amn import AttentionSettings, Rows
from fedham_flwr.core.projections import project
from fedham_flwr.mixing import meta_models
from fedham_flwr.mixing.meta_models import MetaModels

kinds = pytest.mark.parametrize(("meta", "bias"), [(m, b) for m in ("attention", "aghn") for b in (False, True)])
SHARES = {"masked": st.booleans(), "counted": st.booleans()}  # whether some may not be mixed, and samples count
D, K = 5, 3


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def settings(meta: str = "attention", bias: bool = False, **given: Any) -> AttentionSettings:
    equal = {"initial_temperature": 0.0, "feature_dim": D, "key_dim": K}
    return AttentionSettings(**{"meta": meta, "peer_bias": bias, **equal, **given})


def started(chosen: AttentionSettings, units: int, peers: int) -> dict[str, Tensor]:
    """Meta-models of all peers as at the start, in float64."""
    psi = [meta_models.initial(chosen, units, peers, torch.Generator().manual_seed(i)) for i in range(peers)]
    return {name: torch.stack([one[name] for one in psi]).double() for name in psi[0]}


def learned(chosen: AttentionSettings, units: int, peers: int, seed: int) -> dict[str, Tensor]:
    """Meta-models in which nothing is 0, so that every tensor has a gradient."""
    psi = started(chosen, units, peers)
    return {n: t + 0.5 * noise(*t.shape, seed=seed + at) for at, (n, t) in enumerate(sorted(psi.items()))}


class Case(NamedTuple):
    """N clients with models, each its own peers; all are looked at, in another order than they are stored in."""

    psi: dict[str, Tensor]
    models: Tensor  # [N, L, P]
    p: Tensor
    own: Tensor
    allowed: Tensor

    def look(self, meta: str) -> Rows:
        return amn.attend(self.psi, self.p, self.own, self.allowed, meta)

    def of(self, client: int) -> dict[str, Tensor]:
        return {name: tensor[client] for name, tensor in self.psi.items()}


def projected(models: Tensor, d: int = D) -> Tensor:
    """(7) for models [N, L, P], with signs of its own for each unit."""
    signs = noise(*models.shape[1:], seed=99).sign()
    p = torch.stack([project(models[:, unit], signs[unit], d) for unit in range(models.shape[1])], 1)
    return amn.centred(p, torch.ones(len(p), dtype=torch.bool))


def case(
    meta: str, bias: bool, peers: int = 4, units: int = 2, seed: int = 0, masked: bool = False, counted: bool = False
) -> Case:
    draw = torch.Generator().manual_seed(seed)
    models, own = noise(peers, units, 7, seed=seed), torch.randperm(peers, generator=draw)
    allowed = torch.rand(peers, peers, generator=draw) < (0.5 if masked else 2)
    allowed[torch.arange(peers), torch.randint(peers, (peers,), generator=draw)] = True  # one at least
    shares = allowed * (0.2 + 3 * torch.rand(peers, generator=draw, dtype=torch.float64)) if counted else allowed
    return Case(learned(settings(meta, bias), units, peers, seed), models, projected(models), own, shares)


# ---- the naive loops, which autograd can go through ------------------------------------------------------------------


def feature_slowly(p: Tensor, meta: str) -> Tensor:
    if meta == "aghn":
        return p / math.sqrt(sum(float(x) ** 2 for x in p)) if bool(p.any()) else p
    mean = sum(float(x) for x in p) / len(p)
    return (p - mean) / math.sqrt(sum((float(x) - mean) ** 2 for x in p) / len(p) + amn.TINY)


def rows_slowly(
    psi: Mapping[str, Tensor], p: Tensor, own: int, allowed: Sequence[float], meta: str, at: Mapping[str, Tensor]
) -> Tensor:
    """(7) to (9) for one client, unit by unit and peer by peer: its effective rows [L, N].

    f(c) is that of the meta-model `at`: with it constant, the gradient is the one that is wanted.
    """
    rows = []
    for unit in range(p.shape[1]):
        f = [feature_slowly(model[unit], meta) for model in p]
        peers = [j for j in range(len(p)) if allowed[j] and j != own]
        row = [torch.zeros((), dtype=p.dtype) for _ in p]
        a, common = weights_slowly(psi, f, own, peers, unit, meta, allowed), torch.zeros_like(p[0, unit])
        for j, weight in zip(peers, weights_slowly(at, f, own, peers, unit, meta, allowed), strict=True):
            common = common + float(weight) * p[j, unit]
        u = psi["gate"][unit]
        if meta == "attention":
            query, key = psi["query2"][unit], psi["key2"][unit]
            u = u + (query @ f[own]) @ (key @ f[own] - key @ feature_slowly(common, meta)) / math.sqrt(len(key))
        mean = sum(allowed[j] for j in peers) / max(1, len(peers))
        beta = 1 / (1 + torch.exp(-u) * mean / (allowed[own] or 1)) if peers else torch.ones_like(u)
        beta = beta if allowed[own] else torch.zeros_like(u)
        for j, weight in zip(peers, a, strict=True):
            row[j] = (1 - beta) * weight
        row[own] = beta
        rows.append(torch.stack(row))
    return torch.stack(rows)


def weights_slowly(
    psi: Mapping[str, Tensor],
    f: list[Tensor],
    own: int,
    peers: list[int],
    unit: int,
    meta: str,
    shares: Sequence[float],
) -> list[Tensor]:
    """(8): the weights over peers."""
    powers = []
    for j in peers:
        if meta == "aghn":
            s = psi["temperature"][unit] * (f[own] @ f[j])
        else:
            key = psi["key"][unit]
            s = (psi["query"][unit] @ f[own]) @ (key @ f[j]) / math.sqrt(len(key))
        powers.append(shares[j] * torch.exp(s + psi["bias"][unit, j] if "bias" in psi else s))
    return [power / sum(powers) for power in powers]


def loss(h: Tensor) -> Tensor:
    """Of a hybrid [L, P]; neither linear nor quadratic."""
    target = noise(*h.shape, seed=5)
    return ((h - target) ** 2).sum() / 2 + torch.cos(3 * h).sum()


def slope_at(h: Tensor) -> Tensor:
    h = h.detach().requires_grad_()
    return torch.autograd.grad(loss(h), h)[0]


def scores_of(made: Case, rows: Rows) -> Tensor:
    """S_ij = <grad L(h_i), w_j> [n, L, N]."""
    hybrids = torch.einsum("nlj,jlp->nlp", rows.effective(made.own), made.models)
    return torch.stack([torch.einsum("lp,jlp->lj", slope_at(h), made.models) for h in hybrids])


# ---- 1: weights, gates and hybrids -----------------------------------------------------------------------------------


@kinds
@given(peers=st.integers(1, 5), units=st.integers(1, 3), seed=st.integers(0, 999), **SHARES)
def test_1_rows_are_those_of_the_naive_loops_and_sum_to_one_and_hybrids_lie_between_the_models(
    meta: str, bias: bool, peers: int, units: int, masked: bool, counted: bool, seed: int
) -> None:
    made = case(meta, bias, peers, units, seed, masked, counted)
    rows = made.look(meta)
    weights = rows.effective(made.own)
    for i, own in enumerate(made.own.tolist()):
        psi = made.of(i)
        wanted = rows_slowly(psi, made.p, own, made.allowed[i].tolist(), meta, psi)
        assert torch.allclose(weights[i], wanted, rtol=0, atol=1e-12)
        alone = made.allowed[i].sum() == made.allowed[i, own]  # nobody else is there
        assert not rows.a[i, :, own].any()
        assert torch.allclose(rows.a[i].sum(-1), torch.tensor(float(not bool(alone)), dtype=torch.float64))
        if alone or not made.allowed[i, own]:
            assert torch.equal(rows.beta[i], torch.full_like(rows.beta[i], float(alone)))
        else:
            assert bool(((rows.beta[i] > 0) & (rows.beta[i] < 1)).all())
        assert not weights[i][:, made.allowed[i] == 0].any()
    assert bool((weights >= 0).all())
    assert torch.allclose(weights.sum(-1), torch.ones(peers, units, dtype=torch.float64))
    hybrids = torch.einsum("nlj,jlp->nlp", weights, made.models)
    assert bool((hybrids >= made.models.min(0).values - 1e-12).all())
    assert bool((hybrids <= made.models.max(0).values + 1e-12).all())


# ---- 2, 3: the ends: oneself, the mean, equal models -----------------------------------------------------------------


@pytest.mark.parametrize("meta", ["attention", "aghn"])
def test_2_an_open_gate_is_the_clients_own_model_and_a_closed_one_with_one_peer_is_that_peers(meta: str) -> None:
    made = case(meta, True)
    psi, other = dict(made.psi), (made.own + 1) % 4
    psi["bias"] = 1e4 * one_hot(other, 4)[:, None].expand(-1, 2, -1).double()
    for gate, whose in ((1e4, made.own), (-1e4, other)):
        psi["gate"] = torch.full((4, 2), gate, dtype=torch.float64)
        weights = amn.attend(psi, made.p, made.own, made.allowed, meta).effective(made.own)
        assert torch.equal(torch.einsum("nlj,jlp->nlp", weights, made.models), made.models[whose])


@pytest.mark.parametrize("bias", [False, True])
@given(peers=st.integers(1, 9), seed=st.integers(0, 999), scale=st.sampled_from([0.0, 1e-9, 1.0, 1e6]))
def test_2_attention_starts_with_the_mean_of_all_models(bias: bool, peers: int, seed: int, scale: float) -> None:
    models = 1 + scale * noise(peers, 2, 7, seed=seed)
    own, everyone = torch.arange(peers), torch.ones(peers, peers, dtype=torch.bool)
    psi = started(settings(bias=bias), 2, peers)
    weights = amn.attend(psi, projected(models), own, everyone, "attention").effective(own)
    assert torch.allclose(weights, torch.full_like(weights, 1 / peers), rtol=1e-6, atol=0)  # the gate is in float32
    assert len(weights[0, 0, 1:].unique()) <= 1  # bit for bit
    hybrids = torch.einsum("nlj,jlp->nlp", weights, models)
    assert torch.allclose(hybrids, models.mean(0).expand_as(hybrids), rtol=1e-6, atol=1e-6 * (1 + 5 * scale))


@given(peers=st.integers(2, 6), seed=st.integers(0, 999))
def test_2_aghn_starts_with_its_published_temperature_and_self_weight(peers: int, seed: int) -> None:
    models, own = noise(peers, 1, 7, seed=seed), torch.arange(peers)
    p, everyone = projected(models), torch.ones(peers, peers, dtype=torch.bool)
    weights = amn.attend(started(settings("aghn"), 1, peers), p, own, everyone, "aghn").effective(own)[:, 0]
    for i in range(peers):
        cosines = [float(torch.cosine_similarity(p[i, 0], p[j, 0], dim=0)) for j in range(peers)]
        total = sum(math.exp(cosine) for j, cosine in enumerate(cosines) if j != i)
        row = [0.05 if j == i else math.exp(cosine) / total for j, cosine in enumerate(cosines)]  # (p, a)
        assert weights[i].tolist() == pytest.approx([x / 1.05 for x in row], rel=1e-6)


@kinds
@pytest.mark.parametrize("peers", [2, 3, 7])  # the mean of three or seven equal numbers rounds
def test_3_equal_models_are_mixed_into_the_same_and_teach_nothing(meta: str, bias: bool, peers: int) -> None:
    models = noise(1, 2, 7, seed=3).expand(peers, -1, -1)
    p, own = projected(models), torch.arange(peers)
    assert not p.any()
    psi = learned(settings(meta, bias), 2, peers, 0)
    rows = amn.attend(psi, p, own, torch.ones(peers, peers, dtype=torch.bool), meta)
    hybrids = torch.einsum("nlj,jlp->nlp", rows.effective(own), models)
    assert torch.allclose(hybrids, models, atol=1e-14)
    scores = torch.einsum("nlp,jlp->nlj", noise(peers, 2, 7, seed=4), models) + 1e-16 * noise(peers, 2, peers)
    assert not any(slope.any() for slope in amn.gradient(psi, rows, own, scores, meta).values())


def test_3_the_projections_are_those_less_the_mean_of_the_pool_and_0_outside_of_it() -> None:
    p, pool = noise(5, 2, 3), torch.tensor([True, False, True, True, False])
    wanted = p - (p[0] + p[2] + p[3]) / 3
    wanted[~pool] = 0
    assert torch.allclose(amn.centred(p, pool), wanted, rtol=1e-12, atol=1e-15)


def test_4_known_answer_c() -> None:
    models = torch.tensor([[0.0, 0.0], [2.0, 0.0], [0.0, 4.0]], dtype=torch.float64)
    psi = {name: tensor[:1] for name, tensor in started(settings(bias=True, feature_dim=2), 1, 3).items()}
    psi["gate"] = torch.zeros(1, 1, dtype=torch.float64)
    own, everyone = torch.tensor([0]), torch.ones(1, 3, dtype=torch.bool)
    rows = amn.attend(psi, projected(models[:, None], 2), own, everyone, "attention")
    assert rows.a[0, 0].tolist() == [0.0, 0.5, 0.5]
    assert (rows.a[0, 0] @ models).tolist() == [1.0, 2.0]  # c
    h = rows.effective(own)[0, 0] @ models
    assert h.tolist() == [0.5, 1.0]
    away = h - torch.tensor([1.0, 0.0], dtype=torch.float64)
    assert away.square().sum().item() / 2 == 0.625  # the loss, whose gradient is `away`
    assert away.tolist() == [-0.5, 1.0]
    scores = (models @ away)[None, None]
    assert scores[0, 0].tolist() == [0.0, -1.0, 4.0]
    slopes = amn.gradient(psi, rows, own, scores, "attention")
    assert slopes["bias"].tolist() == [[[0.0, -0.625, 0.625]]]  # dJ/ds
    assert slopes["gate"].tolist() == [[-0.375]]  # dJ/du


# ---- 4, 5, 7: the gradient -------------------------------------------------------------------------------------------


def objective(made: Case, i: int, psi: Mapping[str, Tensor], meta: str, rho: float = 0.0) -> Tensor:
    """J_i of a meta-model, f(c_i) that of the one it has."""
    rows = rows_slowly(psi, made.p, int(made.own[i]), made.allowed[i].tolist(), meta, made.of(i))
    total = loss(torch.einsum("lj,jlp->lp", rows, made.models))
    for row, prior in zip(rows, priors(made)[i], strict=True):
        there = row > 0
        total = total + rho * (row[there] * (row[there] / prior[there]).log()).sum()
    return total


def priors(made: Case) -> Tensor:
    """Rows that the rows are held to [n, L, N], of which none has a weight of 0."""
    clients, units = made.models.shape[:2]
    return noise(clients, units, clients, seed=5).softmax(-1)


@kinds
@pytest.mark.parametrize("rho", [0.0, 0.7])
@given(peers=st.integers(1, 4), units=st.integers(1, 2), seed=st.integers(0, 999), **SHARES)
def test_5_the_gradient_is_that_of_autograd_through_the_naive_loops(
    meta: str, bias: bool, rho: float, peers: int, units: int, masked: bool, counted: bool, seed: int
) -> None:
    made = case(meta, bias, peers, units, seed, masked, counted)
    rows = made.look(meta)
    scores = amn.penalised(scores_of(made, rows), rows.effective(made.own), priors(made), rho)
    slopes = amn.gradient(made.psi, rows, made.own, scores, meta)
    assert slopes.keys() == made.psi.keys()
    for i in range(peers):
        psi = {name: tensor.clone().requires_grad_() for name, tensor in made.of(i).items()}
        total = objective(made, i, psi, meta, rho) + 0 * sum(tensor.sum() for tensor in psi.values())
        found = torch.autograd.grad(total, list(psi.values()))
        for name, wanted in zip(psi, found, strict=True):
            assert (slopes[name][i] - wanted).abs().max() < 1e-9, name
    if bias:
        assert slopes["bias"].sum(-1).abs().max() < 1e-12  # sum_j dJ/ds_ij


@kinds
@pytest.mark.parametrize("rho", [0.0, 0.7])
def test_5_the_gradient_is_that_of_finite_differences(meta: str, bias: bool, rho: float) -> None:
    made, step = case(meta, bias, peers=3, seed=1, counted=rho > 0), 1e-3
    rows = made.look(meta)
    scores = amn.penalised(scores_of(made, rows), rows.effective(made.own), priors(made), rho)
    slopes = amn.gradient(made.psi, rows, made.own, scores, meta)
    for name, slope in slopes.items():
        for i in range(3):
            way = noise(*slope[i].shape, seed=i)
            way /= way.norm()

            def along(length: float, i: int = i, name: str = name, way: Tensor = way) -> float:
                psi = made.of(i)
                return float(objective(made, i, psi | {name: psi[name] + length * way}, meta, rho))

            # five points: the error is of the order of step^4
            near, far = along(step) - along(-step), along(2 * step) - along(-2 * step)
            assert float((slope[i] * way).sum()) == pytest.approx((8 * near - far) / (12 * step), rel=1e-9, abs=1e-9)


def test_5_the_penalty_is_of_the_divergence_from_the_prior_among_those_that_may_be_mixed() -> None:
    weights = torch.tensor([[[0.5, 0.0, 0.5], [0.25, 0.0, 0.75]]], dtype=torch.float64)
    prior = torch.tensor([[[0.5, 0.0, 0.5], [0.5, 0.5, 0.0]]], dtype=torch.float64)
    slopes = amn.penalised(torch.ones_like(weights), weights, prior, 2.0)
    assert slopes[0, 0].tolist() == [1.0, 1.0, 1.0]
    assert slopes[0, 1].tolist() == pytest.approx([1 + 2 * math.log(0.5), 1.0, 1.0])


@kinds
@pytest.mark.parametrize("optimizer", ["sgd", "normalised", "adam"])
@pytest.mark.parametrize("eta", [0.1, 1e-6])
def test_7_the_change_by_one_step_of_training_teaches_what_the_gradient_does(
    meta: str, bias: bool, optimizer: str, eta: float
) -> None:
    """h_i - (h_i - eta grad) is eta times the gradient: `sgd` steps by eta times as much, the others by as much."""
    made, everyone, rate = case(meta, bias), torch.arange(4), 0.01
    moved = {}
    for surrogate in (False, True):
        scale = eta if surrogate else 1.0
        chosen = settings(meta, bias, optimizer=optimizer, learning_rate=rate / scale if optimizer == "sgd" else rate)
        meta_models = MetaModels(chosen, 2)
        meta_models.add([torch.Generator().manual_seed(i) for i in range(4)], 4)
        for number in range(3):
            rows = meta_models.attend(everyone, made.p, made.own, made.allowed)
            hybrids = torch.einsum("nlj,jlp->nlp", rows.effective(made.own).double(), made.models)
            slopes = torch.stack([slope_at(h + number) for h in hybrids])
            direction = hybrids - (hybrids - eta * slopes) if surrogate else slopes
            scores = torch.einsum("nlp,jlp->nlj", direction, made.models)
            meta_models.step(everyone, rows, made.own, scores)
        moved[surrogate] = meta_models.params
    start = started(settings(meta, bias), 2, 4)
    assert (moved[False]["gate"] - start["gate"]).abs().max() > rate / 10
    for name, tensor in moved[False].items():
        assert not torch.equal(tensor.double(), start[name]), name
        assert torch.allclose(moved[True][name], tensor, rtol=0, atol=1e-6), name


# ---- 8, 9: projections, and the preset -------------------------------------------------------------------------------


def test_9_known_answer_of_fedaghn() -> None:
    p = torch.tensor([[[3.0, 0.0]], [[0.1, 0.0]], [[0.0, 7.0]]], dtype=torch.float64)  # cosines 1 and 0 with the first
    psi = {"gate": torch.tensor([[math.log(0.5)]]).double(), "temperature": torch.tensor([[2.0]]).double()}
    own, everyone = torch.tensor([0]), torch.ones(1, 3, dtype=torch.bool)
    row = amn.attend(psi, p, own, everyone, "aghn").effective(own)[0, 0]
    assert row.tolist() == pytest.approx([1 / 3, 0.5871980, 0.0794686], abs=1e-7)


@given(peers=st.integers(2, 6), q=st.floats(0.1, 5), p=st.floats(0.01, 2), seed=st.integers(0, 999))
def test_9_attention_has_the_preset_as_a_special_case(peers: int, q: float, p: float, seed: int) -> None:
    """Features of mean 0 have length sqrt(d), so W_Q^T W_K = q sqrt(k) / d of the identity gives q times the cosine."""
    points, own = noise(peers, 2, D, seed=seed), torch.arange(peers)
    points = points - points.mean(-1, keepdim=True)
    everyone, one = torch.ones(peers, peers, dtype=torch.bool), torch.ones(peers, 2, dtype=torch.float64)
    gate, same = {"gate": math.log(p) * one}, torch.eye(D, dtype=torch.float64).expand(peers, 2, D, D)
    wanted = amn.attend(gate | {"temperature": q * one}, points, own, everyone, "aghn")
    psi = {**gate, "query": same, "key": q * D**0.5 / D * same, "query2": same, "key2": 0 * same}
    rows = amn.attend(psi, points, own, everyone, "attention")
    assert torch.allclose(rows.effective(own), wanted.effective(own), atol=1e-9)
    assert torch.allclose(rows.beta, one * p / (1 + p), atol=1e-12)
