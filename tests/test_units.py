"""Rows of a model's parts: which layer groups share one, whose projections it looks at, and with what it starts."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from mixers import after_rounds, flat, names, server, trained
from presets import planned

from fedham_flwr.algorithms.amn import AttentionSettings, attend, centred
from fedham_flwr.mixing.meta_models import initial
from fedham_flwr.mixing.rows import Units

GROUPS = ("conv", "norm", "fc", "head")


def units(unit: str, features_of: str = "own", groups: tuple[str, ...] = GROUPS) -> Units:
    return Units.of(groups, unit, features_of)


@pytest.mark.parametrize(
    ("unit", "parts"),
    [("layer", [[0], [1], [2], [3]]), ("body", [[0, 1, 2], [3]]), ("model", [[0, 1, 2, 3]])],
)
@pytest.mark.parametrize("features_of", ["own", "head", "all"])
def test_units_are_those_of_naive_loops(unit: str, parts: list[list[int]], features_of: str) -> None:
    made = units(unit, features_of)
    draw = torch.Generator().manual_seed(0)
    p, scores = (torch.randn(3, 4, 5, generator=draw, dtype=torch.float64) for _ in range(2))
    weights = torch.rand(3, len(parts), 5, generator=draw)
    assert (len(made), made.groups) == (len(parts), 4)
    seen, added, spread = made.seen(p), made.scores(scores), made.by_group(weights)
    for n in range(3):
        for at, some in enumerate(parts):
            looks = {"own": some, "head": [3], "all": [0, 1, 2, 3]}[features_of]
            assert torch.allclose(seen[n, at], sum(p[n, group] for group in looks), atol=1e-14)
            assert torch.allclose(added[n, at], sum(scores[n, group] for group in some), atol=1e-14)
            for group in some:
                assert torch.equal(spread[n, group], weights[n, at])
                assert made.unit_of[group] == at
    rows = made.rows(weights)
    assert rows.shape[1] == (1 if unit == "model" else 4)
    assert torch.equal(rows.expand(-1, 4, -1), spread)
    assert torch.equal(made.rows(weights[0]), rows[0])


@pytest.mark.parametrize("unit", ["layer", "body", "model"])
@pytest.mark.parametrize("features_of", ["own", "head", "all"])
def test_a_network_of_one_layer_group_has_one_unit(unit: str, features_of: str) -> None:
    made = units(unit, features_of, ("only",))
    assert (made.parts, made.looks) == (((0,),), ((0,),))


@pytest.mark.parametrize("meta", ["attention", "aghn"])
def test_weights_start_by_the_cosine_of_features(meta: str) -> None:
    """On average over the draws of queries, s_ij = t cos(f_i, f_j): unbiased, and exact with the two scalars."""
    d, n, t = 16, 4, 3.0
    chosen = AttentionSettings(meta=meta, feature_dim=d, key_dim=8, initial_temperature=t)  # type: ignore[arg-type]
    draw = torch.Generator().manual_seed(1)
    p = centred(torch.randn(n, 1, d, generator=draw, dtype=torch.float64), torch.ones(n, dtype=torch.bool))
    f = p if meta == "aghn" else p - p.mean(-1, keepdim=True)
    wanted = t * torch.nn.functional.cosine_similarity(f[:1, 0], f[:, 0])
    own, everyone = torch.zeros(1, dtype=torch.int64), torch.ones(1, n, dtype=torch.bool)
    logits = []
    for seed in range(2 if meta == "aghn" else 4000):
        psi = {k: v[None].double() for k, v in initial(chosen, 1, n, torch.Generator().manual_seed(seed)).items()}
        a = attend(psi, p, own, everyone, meta).a[0, 0, 1:]
        logits.append((a / a[0]).log())
    found, error = torch.stack(logits).mean(0), (4 * torch.stack(logits).std(0) / len(logits) ** 0.5)
    assert bool(((found - (wanted[1:] - wanted[1])).abs() <= error + 1e-6).all())


def test_without_it_weights_start_equal_and_as_they_did() -> None:
    psi = initial(AttentionSettings(initial_temperature=0.0), 3, 4, torch.Generator().manual_seed(0))
    assert not any(psi[name].any() or psi[name].signbit().any() for name in ("key", "key2"))
    drawn = torch.randn(3, 32, 64, generator=torch.Generator().manual_seed(0)) / 8
    assert torch.equal(psi["query"], drawn)


CASES = [
    {"strategy": "amn"},
    {"strategy": "amn", "candidates": 2},
    {"strategy": "fedham", "transport": "peers"},
]


@pytest.mark.parametrize("given", CASES, ids=["amn", "candidates", "peers"])
@pytest.mark.parametrize("unit", ["layer", "body", "model"])
def test_layers_of_a_unit_are_mixed_alike(given: dict[str, Any], unit: str) -> None:
    """The server's own mixtures have the weights that it tells, and layers of a unit the same ones."""
    if given["strategy"] == "fedham":  # whose clients mix: the server keeps a row for each unit
        made = server(given["strategy"], transport="peers", unit=unit, features_of="head")
        assert made._last.shape[1] == len(made._projections.units)
        return
    given = {key: value for key, value in given.items() if key != "strategy"}
    made = after_rounds(server("amn", unit=unit, features_of="head", learning_rate=0.1, **given), 3)
    everybody = names(4)
    told = made.mixing_weights(4, everybody, {})
    parts = made._projections.units.parts
    assert len(parts) == {"layer": 4, "body": 2, "model": 1}[unit]
    for some in parts:
        assert all(torch.equal(told.weights[:, some[0]], told.weights[:, group]) for group in some)
    firsts = [told.weights[:, some[0]] for some in parts]
    assert all(not torch.equal(firsts[0], other) for other in firsts[1:])
    starts = planned(made.plan(4, everybody))
    bank = made._pool.bank
    models = [bank.model(client) for client in bank.clients]
    for at, client in enumerate(everybody):
        for group, name in enumerate(bank.groups):
            tensors = [n for n in starts[client] if n.startswith(f"{name}.")]
            row = told.weights[at, group]
            columns = range(told.weights.shape[-1]) if told.places is None else told.places[at, group].tolist()
            for n in tensors:
                wanted = sum(w * models[j][n] for w, j in zip(row, columns, strict=True))
                torch.testing.assert_close(starts[client][n], wanted, rtol=0, atol=1e-6)
    assert flat(trained(starts, 4)["0"].params).isfinite().all()
