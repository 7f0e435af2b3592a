"""Quadratic programmes over the simplex: the projection by its definition, the minimum by SciPy's solver."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import minimize

from fedham_flwr.core.simplex import minimise, project


def drawn(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@given(st.integers(1, 4), st.integers(1, 7), st.floats(0.01, 100), st.integers(0, 2**31))
def test_the_projection_is_the_shift_that_leaves_a_sum_of_one(n: int, m: int, scale: float, seed: int) -> None:
    points = scale * drawn(seed, n, m)
    for point, found in zip(points, project(points), strict=True):
        low, high = float(point.min()) - 1, float(point.max())
        for _ in range(100):  # the shift by bisection
            middle = (low + high) / 2
            low, high = (middle, high) if sum(max(float(x) - middle, 0) for x in point) > 1 else (low, middle)
        wanted = torch.tensor([max(float(x) - low, 0) for x in point], dtype=torch.float64)
        torch.testing.assert_close(found, wanted, atol=1e-9, rtol=0)


def test_the_projection_by_hand() -> None:
    points = torch.tensor([[0.2, 0.8], [3.0, 0.0], [0.5, 0.9]], dtype=torch.float64)
    wanted = torch.tensor([[0.2, 0.8], [1.0, 0.0], [0.3, 0.7]], dtype=torch.float64)
    torch.testing.assert_close(project(points), wanted)


@pytest.mark.parametrize(("m", "rank", "ridge"), [(3, 3, 1e-2), (8, 3, 1e-2), (12, 20, 1e-3), (20, 4, 1e-4)])
def test_the_minimum_is_that_of_scipy(m: int, rank: int, ridge: float) -> None:
    factor, linear = drawn(m, m, rank), drawn(m + 1, 3, m)
    curvature = factor @ factor.T + ridge * torch.eye(m, dtype=torch.float64)
    found = minimise(curvature, linear, torch.full((3, m), 1 / m, dtype=torch.float64))
    assert bool((found >= 0).all())
    torch.testing.assert_close(found.sum(-1), torch.ones(3, dtype=torch.float64))
    h = curvature.numpy()
    for row, g in zip(found.numpy(), linear.numpy(), strict=True):
        solved = minimize(
            lambda a, g=g: a @ h @ a - 2 * g @ a, np.full(m, 1 / m), jac=lambda a, g=g: 2 * (h @ a - g),
            bounds=[(0, 1)] * m, constraints={"type": "eq", "fun": lambda a: a.sum() - 1, "jac": np.ones_like},
            method="SLSQP", options={"ftol": 1e-14, "maxiter": 1000},
        )  # fmt: skip
        assert row @ h @ row - 2 * g @ row == pytest.approx(solved.fun, abs=1e-7)
        assert np.abs(row - solved.x).max() < 1e-4


def test_where_nothing_is_gained_the_first_points_stay() -> None:
    first = torch.eye(3, dtype=torch.float64)
    nothing = torch.zeros(3, 3, dtype=torch.float64)
    assert torch.equal(minimise(nothing, nothing, first), first)
    assert torch.equal(minimise(torch.ones_like(nothing), torch.ones_like(nothing), first), first)
