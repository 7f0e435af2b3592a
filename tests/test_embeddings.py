"""The clients' embeddings: where they start, and who moves."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.optim.sgd import sgd

from fedham_flwr.algorithms.fedtp import MOST, FedTPSettings
from fedham_flwr.core.errors import UserError
from fedham_flwr.core.seeding import torch_stream
from fedham_flwr.generating.embeddings import Embeddings

SMALL = {"embedding_dim": 5, "embedding_learning_rate": 0.1, "weight_decay": 0.03}


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def embeddings_of(*clients: str, **given: Any) -> Embeddings:
    z = Embeddings(FedTPSettings(**(SMALL | given)))
    z.add(clients, [torch_stream(0, "embedding", client=client) for client in clients])
    return z


def test_embeddings_start_as_torchs_from_each_clients_own_stream() -> None:
    z = embeddings_of("a", "b", "c", embedding_dim=4000)
    assert z.clients == ("a", "b", "c")
    assert float(z.values.std()) == pytest.approx(1, abs=0.05)
    assert float(z.values.mean()) == pytest.approx(0, abs=0.05)
    other = embeddings_of("c", "a", embedding_dim=4000)
    assert torch.equal(z.of(["a", "c"]), other.of(["a", "c"]))
    assert not torch.equal(*z.of(["a", "b"]))
    assert z.rows(["c", "a"]).tolist() == [2, 0]


def test_clients_that_come_later_change_no_one_else() -> None:
    z = embeddings_of("a", "b")
    z.step(["b"], drawn(1, 5))
    values, velocity = z.values.clone(), z.velocity.clone()
    z.add(["c", "d"], [torch_stream(0, "embedding", client=client) for client in "cd"])
    assert torch.equal(z.values[:2], values)
    assert torch.equal(z.velocity[:2], velocity)
    assert torch.equal(z.values[2:], embeddings_of("d", "c").of(["c", "d"]))
    assert not bool(z.velocity[2:].any())
    with pytest.raises(AssertionError, match="these clients have embeddings"):
        z.add(["a"], [torch_stream(0, "embedding", client="a")])


def test_who_is_absent_does_not_move_where_torchs_dense_sgd_would_move_it() -> None:
    z = embeddings_of("a", "b", "c")
    table = z.values.clone()
    momenta: list[Tensor | None] = [None]
    settings = {
        "lr": 0.1,
        "momentum": 0.9,
        "weight_decay": 0.03,
        "dampening": 0.0,
        "nesterov": False,
        "maximize": False,
    }
    cohorts = (["a", "b", "c"], ["c", "a"], ["a", "c"])
    for turn, cohort in enumerate(cohorts):
        gradient = drawn(len(cohort), 5, seed=turn)
        before = z.of(["b"]), z.velocity[z.rows(["b"])]
        z.step(cohort, gradient)
        sgd(
            [table],
            [torch.zeros_like(table).index_copy(0, z.rows(cohort), gradient)],
            momenta,
            foreach=False,
            **settings,
        )
        if "b" not in cohort:
            assert torch.equal(z.of(["b"]), before[0])
            assert torch.equal(z.velocity[z.rows(["b"])], before[1])
    present = z.rows(["a", "c"])
    torch.testing.assert_close(z.values[present], table[present])
    assert momenta[0] is not None
    torch.testing.assert_close(z.velocity[present], momenta[0][present])
    assert float((table[1] - z.values[1]).abs().min()) > 1e-3


@pytest.mark.parametrize("momentum", [0.0, 0.5])
def test_a_step_by_hand_with_and_without_decay(momentum: float) -> None:
    for decay, pulled in ((True, 0.03), (False, 0.0)):
        z, g = embeddings_of("a", momentum=momentum), drawn(1, 5)
        start = z.values.clone()
        z.step(["a"], g, decay=decay)
        first = g + pulled * start
        middle = start - 0.1 * first
        torch.testing.assert_close(z.values, middle)
        z.step(["a"], g, decay=decay)
        second = momentum * first + g + pulled * middle
        torch.testing.assert_close(z.values, middle - 0.1 * second)
        torch.testing.assert_close(z.velocity, second if momentum else torch.zeros(1, 5))


def test_the_largest_rate_and_decay_are_factors_that_float32_can_hold() -> None:
    z = embeddings_of("a", embedding_learning_rate=MOST, weight_decay=MOST)
    start = z.values.clone()
    z.step(["a"], torch.zeros(1, 5))
    torch.testing.assert_close(z.values, -1e12 * start)


def test_embeddings_that_would_not_be_finite_are_refused() -> None:
    z = embeddings_of("a", "b")
    values, velocity = z.values.clone(), z.velocity.clone()
    with pytest.raises(UserError, match=r"^the embeddings diverged: lower fedtp\.embedding-learning-rate=0\.1$"):
        z.step(["b", "a"], torch.tensor([[0.0] * 5, [0, float("inf"), 0, 0, 0]]))
    assert torch.equal(z.values, values)
    assert torch.equal(z.velocity, velocity)
