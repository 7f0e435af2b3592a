"""The inner products of a pool's models against one pair of models after the other."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from mixers import after_rounds, flat, models_of, names, server, trained
from presets import planned

from fedham_flwr.core.threads import threads
from fedham_flwr.mixing import gram as module
from fedham_flwr.mixing.gram import Gram


@pytest.fixture
def made() -> Any:
    """A pool of five models, of which three have trained twice, one once, and one never."""
    half = after_rounds(server("fedamp", 5), 1, 3)
    half.merge(2, trained(planned(half.plan(2, ("0", "1", "2", "4"))), 2))
    return half


def test_distances_and_cosines_are_those_of_each_pair(made: Any) -> None:
    w, gram, rows = models_of(made, 5), made._gram, torch.arange(5)
    u = w - flat(made.first)
    for i in range(5):
        assert float(gram.lengths()[i]) == pytest.approx(float(w[i].norm()), rel=1e-6)
        for j in range(5):
            assert float(gram.squares(rows)[i, j]) == pytest.approx(float((w[i] - w[j]).square().sum()), abs=1e-3)
            cosine = float(u[i] @ u[j] / (u[i].norm() * u[j].norm())) if 3 not in (i, j) else 0.0
            assert float(gram.cosines(rows)[i, j]) == pytest.approx(cosine, abs=1e-6)
            whole = float(w[i] @ w[j] / (w[i].norm() * w[j].norm()))
            assert float(gram.model_cosines(rows)[i, j]) == pytest.approx(whole, abs=1e-6)
    assert not gram.squares(rows).diagonal().any()


def test_rows_that_are_made_anew_are_those_made_at_once(made: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ROWS", 2)
    for count in (1, 3):
        with threads(count):
            again = Gram(made.manifest, made._pool.bank, made.first)
            again.add(5)
            again.update(names(5))
        assert torch.allclose(again.products, made._gram.products, rtol=1e-6, atol=1e-6)
        assert torch.equal(again.along, made._gram.along)


def test_near_models_have_their_distance_and_not_its_rounding() -> None:
    """A thousandth of a step apart, models of length 10 would leave nothing of it in a product of float32."""
    half = server("fedamp", 2)
    half.merge(1, trained(planned(half.plan(1, names(2))), 1, length=1e-5))
    w = models_of(half, 2)
    wanted = float((w[0] - w[1]).square().sum())
    assert float(half._gram.squares(torch.tensor([0]))[0, 1]) == pytest.approx(wanted, rel=1e-5)
