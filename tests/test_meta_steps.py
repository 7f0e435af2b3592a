"""How far a meta-model goes in a step: no farther than its bound in logits, and no gate farther than it comes back."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from fedham_flwr.algorithms import amn
from fedham_flwr.algorithms.amn import AttentionSettings, Rows, gate_logits, peer_logits
from fedham_flwr.core.parameters import Params
from fedham_flwr.mixing.meta_models import FARTHEST, LAYER_TWO, MetaModels, bounded

N, UNITS, D = 4, 2, 6
EVERYONE = torch.arange(N)
ALL = torch.ones(N, N, dtype=torch.bool)
kinds = pytest.mark.parametrize("meta", ["attention", "aghn"])
optimizers = pytest.mark.parametrize("optimizer", ["adam", "normalised", "sgd"])


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def points(seed: int = 0, lists: bool = False) -> Tensor:
    p = amn.centred(noise(N, UNITS, D, seed=seed), torch.ones(N, dtype=torch.bool))
    return p.expand(N, *p.shape) if lists else p


def made(**given: Any) -> MetaModels:
    models = MetaModels(AttentionSettings(**{"feature_dim": D, "key_dim": 3, "peer_bias": True} | given), UNITS)
    models.add([torch.Generator().manual_seed(i) for i in range(N)], N)
    return models


def logits(psi: Params, rows: Rows, meta: str) -> tuple[Tensor, Tensor]:
    """Of peers and of gates, for the same features."""
    return peer_logits(psi, rows.mine, rows.features, meta), gate_logits(psi, rows.mine, rows.common, meta)


def moves(before: Params, after: Params, rows: Rows, meta: str) -> tuple[Tensor, Tensor]:
    """By how much the logits of peers [n, L, N] and of gates [n, L] have moved; a client is no peer of its own."""
    old, new = (logits({n: t.double() for n, t in psi.items()}, rows, meta) for psi in (before, after))
    peers, gates = (abs(b - a) for a, b in zip(old, new, strict=True))
    return peers * (rows.a > 0), gates


# ---- the bound -------------------------------------------------------------------------------------------------------


@kinds
@optimizers
@pytest.mark.parametrize("lists", [False, True])
@pytest.mark.parametrize("rate", [0.01, 1.0, 1000.0])
def test_a_step_moves_no_logit_by_more_than_its_bound(meta: str, optimizer: str, lists: bool, rate: float) -> None:
    models = made(meta=meta, optimizer=optimizer, learning_rate=rate)
    bound, most = models.settings.max_logit_step, 0.0
    for number in range(6):
        looked = models.attend(EVERYONE, points(number, lists), EVERYONE, ALL)
        before = {name: tensor.clone() for name, tensor in models.params.items()}
        models.step(EVERYONE, looked, EVERYONE, noise(N, UNITS, N, seed=number))
        as_double = Rows(*(tensor.double() for tensor in looked))
        peers, gates = moves(before, models.params, as_double, meta)
        most = max(most, float(peers.max()), float(gates.max()))
        assert most < bound + 1e-4
    if rate > 1:
        assert most > 0.9 * bound  # it is the bound that holds it


def test_the_step_that_a_pilot_found_too_long_is_shortened_by_the_default() -> None:
    """A new meta-model with the default sizes: Adam at 0.01 moved a logit by several units."""
    for bound, moved in ((0.0, (1.0, 20.0)), (0.3, (0.2, 0.3001))):
        models = MetaModels(AttentionSettings(max_logit_step=bound), UNITS)
        models.add([torch.Generator().manual_seed(i) for i in range(N)], N)
        p = amn.centred(noise(N, UNITS, 64), torch.ones(N, dtype=torch.bool))
        looked = models.attend(EVERYONE, p, EVERYONE, ALL)
        before = {name: tensor.clone() for name, tensor in models.params.items()}
        models.step(EVERYONE, looked, EVERYONE, noise(N, UNITS, N))
        peers, gates = moves(before, models.params, Rows(*(t.double() for t in looked)), "attention")
        assert moved[0] < max(float(peers.max()), float(gates.max())) < moved[1]


@kinds
@given(seed=st.integers(0, 999), scale=st.sampled_from([1e-3, 0.1, 10.0]))
def test_the_length_is_that_of_a_search(meta: str, seed: int, scale: float) -> None:
    """Halving, for each client, unit and layer: how long a step may be if its two terms had the same sign."""
    psi = {n: t.double() + 0.3 * noise(*t.shape, seed=seed + len(n)) for n, t in made(meta=meta).params.items()}
    steps = {n: scale * noise(*t.shape, seed=seed + 50 + len(n)) for n, t in psi.items()}
    rows = amn.attend(psi, points(seed), EVERYONE, ALL, meta)
    found = bounded(psi, steps, rows, meta, 0.3)
    now = logits(psi, rows, meta)

    def terms(i: int, unit: int, layer: int) -> tuple[Tensor, Tensor, float]:
        ahead, back = (logits({n: psi[n] - t * steps[n] for n in psi}, rows, meta)[layer][i, unit] for t in (1, -1))
        here = now[layer][i, unit]
        linear, square, room = (ahead - back) / 2, (ahead + back) / 2 - here, 0.3
        if layer == 1 and float(linear * here) >= 0:  # away from 0
            room = min(room, max(0.0, FARTHEST - abs(float(here))))
        return linear.abs(), square.abs(), room

    for i in range(N):
        for unit in range(UNITS):
            for layer in (0, 1):
                linear, square, room = terms(i, unit, layer)
                low, high = 0.0, 1.0
                counts = (rows.a[i, unit] > 0) if layer == 0 else torch.tensor(True)
                for _ in range(60):
                    middle = (low + high) / 2
                    fits = bool((((linear * middle + square * middle**2) <= room) | ~counts).all())
                    low, high = (middle, high) if fits else (low, middle)
                for name in psi:
                    if (name in LAYER_TWO) == bool(layer):
                        wanted = low * steps[name][i, unit]
                        assert torch.allclose(found[name][i, unit], wanted, rtol=1e-6, atol=1e-12), name


@kinds
def test_a_step_within_the_bound_is_as_it_was(meta: str) -> None:
    free, held = (made(meta=meta, learning_rate=1e-4, max_logit_step=bound) for bound in (0.0, 0.3))
    for models in (free, held):
        models.step(EVERYONE, models.attend(EVERYONE, points(), EVERYONE, ALL), EVERYONE, noise(N, UNITS, N))
    assert all(torch.equal(held.params[name], tensor) for name, tensor in free.params.items())


def test_a_rate_of_any_size_leads_to_no_divergence() -> None:
    models = made(optimizer="sgd", learning_rate=1e45)
    models.step(EVERYONE, models.attend(EVERYONE, points(), EVERYONE, ALL), EVERYONE, noise(N, UNITS, N))
    assert all(bool(tensor.isfinite().all()) for tensor in models.params.values())


# ---- gates -----------------------------------------------------------------------------------------------------------


@kinds
@pytest.mark.parametrize("towards", [1.0, -1.0])
def test_a_gate_that_went_to_the_end_comes_back(meta: str, towards: float) -> None:
    """Two hundred rounds in which a client's own model is better, or worse, than its peers'; then it is otherwise."""
    models = made(meta=meta, learning_rate=0.1, peer_bias=False)
    own = -towards * torch.eye(N, dtype=torch.float64)[:, None].expand(-1, UNITS, -1)

    def after(steps: int, sign: float) -> Tensor:
        for _ in range(steps):
            models.step(EVERYONE, models.attend(EVERYONE, points(), EVERYONE, ALL), EVERYONE, sign * own)
        return models.attend(EVERYONE, points(), EVERYONE, ALL).beta

    there = after(200, 1.0)
    assert bool(((there > 0.99) if towards > 0 else (there < 0.01)).all())
    assert bool(((there < 1) & (there > 0)).all())
    back = after(200, -1.0)
    assert bool(((back < 0.5) if towards > 0 else (back > 0.5)).all())


@kinds
def test_a_gate_goes_no_farther_than_its_end(meta: str) -> None:
    models = made(meta=meta, learning_rate=1.0, peer_bias=False)
    own = -torch.eye(N, dtype=torch.float64)[:, None].expand(-1, UNITS, -1)
    for _ in range(100):
        models.step(EVERYONE, models.attend(EVERYONE, points(), EVERYONE, ALL), EVERYONE, own)
    rows = models.attend(EVERYONE, points(), EVERYONE, ALL)
    far = logits(models.params, rows, meta)[1]
    assert bool((far < FARTHEST + 0.3).all())
    assert bool((far > FARTHEST - 1).all())
