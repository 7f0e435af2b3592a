"""What a round of training tells of who is like whom: where each client went apart from the others."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from fedham_flwr.mixing.attention import directions, of_length_one


def noise(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def slowly(changes: Tensor) -> Tensor:
    found = torch.zeros_like(changes)
    clients, groups, size = changes.shape
    for group in range(groups):
        mean = [sum(float(changes[i, group, k]) for i in range(clients)) / clients for k in range(size)]
        for i in range(clients):
            apart = [float(changes[i, group, k]) - mean[k] * (clients > 2) for k in range(size)]
            length = sum(x * x for x in apart) ** 0.5
            found[i, group] = torch.tensor([x / length for x in apart], dtype=torch.float64)
    return found


@given(
    clients=st.integers(1, 6), groups=st.integers(1, 3), seed=st.integers(0, 999), scale=st.sampled_from([1e-6, 1, 1e6])
)
def test_they_are_those_of_the_naive_loops_whatever_their_scale(
    clients: int, groups: int, seed: int, scale: float
) -> None:
    changes = noise(clients, groups, 8, seed=seed)
    assert torch.allclose(directions(scale * changes), slowly(changes), rtol=0, atol=1e-9)


@pytest.mark.parametrize("clients", [1, 2, 3, 7])
def test_a_client_that_has_not_moved_is_not_apart_where_nobody_has(clients: int) -> None:
    assert not directions(torch.zeros(clients, 2, 4, dtype=torch.float64)).any()


@given(clients=st.integers(3, 7), seed=st.integers(0, 999))
def test_clients_that_went_the_same_way_are_not_told_apart_by_rounding(clients: int, seed: int) -> None:
    same = noise(1, 2, 16, seed=seed).float().expand(clients, -1, -1).double()
    assert not directions(same * (1 + 1e-7 * noise(clients, 2, 16, seed=seed + 1))).any()


def test_of_two_clients_none_is_the_opposite_of_the_other() -> None:
    """Which their mean would make of them, however alike they are."""
    one = noise(1, 1, 16, seed=0)
    two = directions(torch.cat([one, one + 0.1 * noise(1, 1, 16, seed=1)]))
    assert float((two[0] * two[1]).sum()) > 0.9


def test_a_late_round_counts_no_more_than_an_early_one() -> None:
    """Two groups that differ in the first round; a second one that takes everybody ten times as far, each elsewhere."""
    group = torch.arange(8) % 2
    early = torch.stack([noise(1, 16, seed=100 + int(g)) + 0.3 * noise(1, 16, seed=i) for i, g in enumerate(group)])
    late = 10 * noise(8, 1, 16, seed=50)
    same = (group[:, None] == group) & ~torch.eye(8, dtype=torch.bool)

    def inside(sums: Tensor) -> float:
        way = of_length_one(sums - sums.mean(0))[:, 0]
        return float((way @ way.T)[same].mean())

    assert inside(directions(early) + directions(late)) > 0.25
    assert inside(early + late) < 0.1
