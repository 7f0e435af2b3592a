"""Stacked meta-models and their optimisers: against torch's, and against each other."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.optim.adam import adam

from fedham_flwr.algorithms import amn
from fedham_flwr.algorithms.amn import AttentionSettings, Rows
from fedham_flwr.core.errors import UserError
from fedham_flwr.core.parameters import Params
from fedham_flwr.mixing.meta_models import MetaModels

UNITS, D, K, RATE = 2, 4, 3, 0.01
optimizers = pytest.mark.parametrize("optimizer", ["adam", "normalised", "sgd"])
kinds = pytest.mark.parametrize("meta", ["attention", "aghn"])


def made(clients: int, optimizer: str = "adam", peers: int = 0, seed: int = 0, **given: Any) -> MetaModels:
    """Meta-models with biases in which nothing is 0; the first of three is the same as one that is alone."""
    settings = {
        "feature_dim": D,
        "key_dim": K,
        "peer_bias": True,
        "learning_rate": RATE,
        "optimizer": optimizer,
        "max_logit_step": 0.0,
        "initial_temperature": 0.0,
    } | given
    models = MetaModels(AttentionSettings(**settings), UNITS)
    models.add([torch.Generator().manual_seed(100 * seed + i) for i in range(clients)], peers or clients)
    for name, tensor in sorted(models.params.items()):
        for i in range(clients):
            draw = torch.Generator().manual_seed(1000 * i + len(name))
            tensor[i] += 0.3 * torch.randn(tensor[i].shape, generator=draw)
    return models


def points(peers: int, seed: int = 0) -> Tensor:
    p = torch.randn(peers, UNITS, D, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return amn.centred(p, torch.ones(peers, dtype=torch.bool))


def look(models: MetaModels, rows: Tensor, p: Tensor) -> Rows:
    """Every client may get every model, and has the place of its number."""
    return models.attend(rows, p, rows, torch.ones(len(rows), len(p), dtype=torch.bool))


def random_scores(rows: Tensor, peers: int, seed: int = 0) -> Tensor:
    """[n, L, N], those of a client the same whoever else is there."""
    draws = [torch.Generator().manual_seed(10_000 * seed + i) for i in rows.tolist()]
    return torch.stack([torch.randn(UNITS, peers, generator=draw, dtype=torch.float64) for draw in draws])


def stepped(models: MetaModels, rows: Tensor, p: Tensor, seed: int = 0, scale: float = 1.0) -> Params:
    """Let some clients learn, and give the gradients, in float32."""
    looked, scores = look(models, rows, p), scale * random_scores(rows, len(p), seed)
    psi = {name: tensor[rows].double() for name, tensor in models.params.items()}
    as_double = Rows(*(tensor.double() for tensor in looked))
    slopes = amn.gradient(psi, as_double, rows, scores, models.settings.meta)
    models.step(rows, looked, rows, scores)
    return {name: slope.float() for name, slope in slopes.items()}


def copy(state: Params) -> Params:
    return {name: tensor.clone() for name, tensor in state.items()}


def same(a: Params, b: Params) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


# ---- the optimisers --------------------------------------------------------------------------------------------------


@kinds
@pytest.mark.parametrize("scale", [1.0, 1e-6])
def test_adam_is_torchs_for_each_client_by_itself(meta: str, scale: float) -> None:
    models, p = made(3, meta=meta), points(3)
    theirs = [{n: t[i].clone() for n, t in models.params.items()} for i in range(3)]
    first, second = ([[torch.zeros_like(t) for t in params.values()] for params in theirs] for _ in range(2))
    steps = [[torch.zeros(()) for _ in params] for params in theirs]
    settings = {"beta1": 0.9, "beta2": 0.999, "lr": RATE, "eps": 1e-18, "weight_decay": 0.0}
    for number, who in enumerate(([0, 1, 2], [1], [2, 0], [0, 1, 2], [1, 2])):
        slopes = stepped(models, torch.tensor(who), p, number, scale)
        for at, i in enumerate(who):
            params, grads = list(theirs[i].values()), [slopes[name][at] for name in theirs[i]]
            adam(params, grads, first[i], second[i], [], steps[i], amsgrad=False, maximize=False, **settings)
    assert models.moments["steps"].tolist() == [3.0, 4.0, 4.0]
    for i, params in enumerate(theirs):
        for name, param in params.items():
            assert torch.allclose(models.params[name][i], param, rtol=0, atol=2e-6), name


@kinds
@pytest.mark.parametrize("scale", [1e6, 1.0, 1e-9])
def test_a_normalised_step_has_the_length_of_the_learning_rate_in_each_unit(meta: str, scale: float) -> None:
    models, rows = made(3, "normalised", meta=meta, learning_rate=0.5), torch.tensor([2, 0])
    before = copy(models.params)
    slopes = stepped(models, rows, points(3), scale=scale)
    for at, i in enumerate(rows.tolist()):
        for unit in range(UNITS):
            step = torch.cat([(before[name][i, unit] - models.params[name][i, unit]).flatten() for name in before])
            slope = torch.cat([slopes[name][at, unit].flatten() for name in before])
            assert step.norm() == pytest.approx(0.5, rel=1e-5)
            assert torch.allclose(step, 0.5 * slope / slope.norm(), rtol=0, atol=1e-6)


@pytest.mark.parametrize("scale", [1e-24, 1e-28])
def test_a_normalised_step_is_no_longer_where_the_gradient_vanishes(scale: float) -> None:
    models = made(3, "normalised", learning_rate=0.5)
    before = copy(models.params)
    stepped(models, torch.arange(3), points(3), scale=scale)
    assert max((before[name] - models.params[name]).abs().max().item() for name in before) < 0.6


def test_one_steep_gradient_does_not_end_the_learning() -> None:
    models, rows, p = made(2, "adam"), torch.arange(2), points(2)
    with contextlib.suppress(UserError):  # which would do as well, if nothing has changed
        stepped(models, rows, p, scale=1e25)
    before = copy(models.params)
    for number in range(5):
        stepped(models, rows, p, number)
    assert not torch.equal(models.params["gate"], before["gate"])


@kinds
def test_a_plain_step_is_the_learning_rate_times_the_gradient(meta: str) -> None:
    models, rows = made(3, "sgd", meta=meta), torch.tensor([0, 2])
    before = copy(models.params)
    for name, slope in stepped(models, rows, points(3)).items():
        assert torch.allclose(models.params[name][rows], before[name][rows] - RATE * slope, rtol=0, atol=1e-6), name
    assert not models.moments


@kinds
def test_a_penalty_pulls_the_rows_towards_those_of_the_start(meta: str) -> None:
    rows, p = torch.arange(4), points(4)
    models = made(4, "normalised", meta=meta, prior_penalty=1.0, learning_rate=0.05, initial_temperature=2.0)
    fresh = MetaModels(models.settings, UNITS)
    fresh.add([torch.Generator().manual_seed(i) for i in range(4)], 4)
    prior = look(fresh, rows, p).effective(rows)
    assert float(prior.max()) > 0.4  # which are not equal weights
    far = look(models, rows, p).effective(rows)
    for _ in range(200):
        models.step(rows, look(models, rows, p), rows, torch.zeros(4, UNITS, 4, dtype=torch.float64), prior)
    near = look(models, rows, p).effective(rows)
    assert (near - prior).abs().max() < 0.05 < (far - prior).abs().max()


@kinds
@optimizers
def test_steps_against_the_gradient_find_the_peer_with_the_smallest_score(optimizer: str, meta: str) -> None:
    models, rows = made(3, optimizer, meta=meta, learning_rate=0.1), torch.tensor([0])
    scores = torch.tensor([1.0, -1.0, 1.0], dtype=torch.float64).expand(1, UNITS, -1)
    for _ in range(200):
        models.step(rows, look(models, rows, points(3)), rows, scores)
    weights = look(models, rows, points(3)).effective(rows)
    assert bool((weights[0, :, 1] > 0.8).all())


# ---- who changes -----------------------------------------------------------------------------------------------------


@kinds
@optimizers
@given(who=st.sets(st.integers(0, 3), min_size=1, max_size=3), seed=st.integers(0, 99))
def test_a_step_changes_no_bit_of_those_that_were_not_asked(
    optimizer: str, meta: str, who: set[int], seed: int
) -> None:
    models, p = made(4, optimizer, meta=meta), points(4, seed)
    stepped(models, torch.arange(4), p, seed)
    before, absent = copy(models.state_dict()), sorted({0, 1, 2, 3} - who)
    stepped(models, torch.tensor(sorted(who)), p, seed + 1)
    for name, tensor in models.state_dict().items():
        assert torch.equal(tensor[absent], before[name][absent]), name
        assert all(not torch.equal(tensor[i], before[name][i]) for i in who), name


@kinds
@optimizers
def test_what_a_client_learns_does_not_depend_on_who_else_is_there(optimizer: str, meta: str) -> None:
    together, p = made(3, optimizer, meta=meta), points(3)
    alone = made(1, optimizer, peers=3, meta=meta)
    assert all(torch.equal(alone.params[n][0], t[0]) for n, t in together.params.items() if n != "bias")
    alone.params["bias"] = together.params["bias"][:1].clone()
    for number, who in enumerate(([0, 1, 2], [2, 0], [1], [0])):
        stepped(together, torch.tensor(who), p, number)
        if 0 in who:
            stepped(alone, torch.tensor([0]), p, number)
    for name, tensor in alone.state_dict().items():
        assert torch.allclose(tensor[0], together.state_dict()[name][0], rtol=1e-5, atol=1e-6), name


@optimizers
def test_a_latecomer_widens_the_biases_by_zeros_and_moves_nothing_else(optimizer: str) -> None:
    models = made(3, optimizer)
    stepped(models, torch.arange(3), points(3))
    before = copy(models.state_dict())
    models.widen(5)
    for name, tensor in models.state_dict().items():
        if name.endswith("bias"):
            assert tensor.shape == (3, UNITS, 5)
            assert not tensor[..., 3:].any()
        kept = tensor[..., :3] if name.endswith("bias") else tensor
        assert torch.equal(kept, before[name]), name
    models.add([torch.Generator().manual_seed(7)], 6)
    for name, tensor in models.state_dict().items():
        kept = tensor[:3, :, :3] if name.endswith("bias") else tensor[:3]
        assert torch.equal(kept, before[name]), name
        assert not name.startswith(("first/", "second/")) or not tensor[3].any(), name
    assert models.params["gate"][3].sigmoid().tolist() == pytest.approx([1 / 6] * UNITS)
    assert not torch.equal(models.params["query"][3], models.params["query"][2])
    stepped(models, torch.tensor([3, 1]), points(6))


def test_a_meta_model_at_the_start_depends_on_its_generator_alone() -> None:
    def query(*seeds: int) -> Tensor:
        models = MetaModels(AttentionSettings(), UNITS)
        models.add([torch.Generator().manual_seed(seed) for seed in seeds], 3)
        return models.params["query"]

    assert torch.equal(query(1, 2, 3)[1], query(2)[0])
    assert not torch.equal(query(1, 2)[0], query(1, 2)[1])


# ---- the state -------------------------------------------------------------------------------------------------------


@kinds
@optimizers
def test_the_state_is_all_there_is(optimizer: str, meta: str) -> None:
    models, other, p = made(3, optimizer, meta=meta), made(3, optimizer, seed=5, meta=meta), points(3)
    stepped(models, torch.tensor([0, 2]), p)
    state = copy(models.state_dict())
    other.load(models.state_dict())
    assert same(other.state_dict(), state)
    assert other.params.keys() == models.params.keys()
    for each in (models, other):
        stepped(each, torch.tensor([1, 2]), p, 1)
    assert same(models.state_dict(), other.state_dict())
    again = made(3, optimizer, meta=meta)
    again.load(state)
    stepped(again, torch.arange(3), p, 2)
    assert not same(again.state_dict(), state)  # what was loaded is a copy


@kinds
@optimizers
def test_a_step_that_diverges_is_not_taken(optimizer: str, meta: str) -> None:
    models = made(3, optimizer, meta=meta, learning_rate=1e45)
    before = copy(models.state_dict())
    with pytest.raises(UserError, match=r"^a meta-model diverged \(\w+\): lower learning-rate=1e\+45 of it$"):
        stepped(models, torch.tensor([0, 1]), points(3))
    assert same(models.state_dict(), before)


@optimizers
def test_scores_that_are_not_finite_change_nothing(optimizer: str) -> None:
    models, rows = made(3, optimizer), torch.arange(3)
    before, scores = copy(models.state_dict()), torch.ones(3, UNITS, 3, dtype=torch.float64)
    scores[:, 0, 1] = 2.0
    scores[:2, 0, 1] = float("nan")
    with pytest.raises(UserError, match=r"^a meta-model diverged \(\w+\): lower learning-rate=0.01 of it$"):
        models.step(rows, look(models, rows, points(3)), rows, scores)
    assert same(models.state_dict(), before)


@optimizers
def test_one_client_that_diverges_keeps_its_meta_model_and_the_others_learn(
    optimizer: str, caplog: pytest.LogCaptureFixture
) -> None:
    models, other, rows = made(3, optimizer), made(3, optimizer), torch.arange(3)
    before, scores = copy(models.state_dict()), torch.ones(3, UNITS, 3, dtype=torch.float64)
    scores[:, 0, 1] = 2.0
    other.step(rows, look(other, rows, points(3)), rows, scores)
    scores[1, 0, 1] = float("nan")
    models.step(rows, look(models, rows, points(3)), rows, scores)
    assert "1 meta-models would have diverged, and stay as they were" in caplog.text
    for name, tensor in models.state_dict().items():
        assert torch.equal(tensor[1], before[name][1]), name
        assert torch.equal(tensor[[0, 2]], other.state_dict()[name][[0, 2]]), name
    assert not same(other.state_dict(), before)
