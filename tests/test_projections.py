"""Random projections of models: against the matrix, in the mean, and for a bank."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from fedham_flwr.core import projections
from fedham_flwr.core.parameters import LayerGroup, Manifest
from fedham_flwr.core.projections import project
from fedham_flwr.mixing.bank import Bank
from fedham_flwr.mixing.meta_models import Projection

CPU = torch.device("cpu")


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@given(size=st.integers(1, 40), d=st.integers(2, 40), rows=st.integers(1, 3), seed=st.integers(0, 99))
def test_the_projection_is_that_by_the_matrix_and_exact_with_a_sum_for_every_scalar(
    size: int, d: int, rows: int, seed: int
) -> None:
    models, signs = noise(3, size, seed=seed), noise(size, seed=seed + 1).sign()
    matrix = torch.zeros(d, size, dtype=torch.float64)
    for column in range(size):
        matrix[column % d, column] = signs[column]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(projections, "ROWS", rows)  # pieces that do not divide the model
        found = project(models, signs, d)
        assert torch.allclose(found, models @ matrix.T, atol=1e-12)
        assert torch.allclose(found[1:2], project(models[1:2], signs, d), rtol=0, atol=1e-14)
    if d >= size:
        assert torch.allclose(found @ found.T, models @ models.T, atol=1e-13)


def test_inner_products_of_projections_are_unbiased_and_their_error_falls_with_the_root_of_d() -> None:
    size, seeds = 16_384, 200
    x, y = noise(2, size, seed=1)
    models, signs = torch.stack([x, 0.5 * x + y]), noise(seeds, size, seed=2).sign()
    true, spread = float(models[0] @ models[1]), []
    for d in (16, 64, 256, 1024):
        pairs = [project(models, row, d) for row in signs]
        errors = torch.stack([a @ b for a, b in pairs]) / true - 1
        assert abs(errors.mean()) < 4 * errors.std() / seeds**0.5
        spread.append(errors.square().mean().sqrt().item())
    slope = math.log(spread[-1] / spread[0]) / math.log(1024 / 16)
    assert slope == pytest.approx(-0.5, abs=0.06)


def bank(count: int, seed: int = 0, sizes: tuple[int, int] = (5000, 5000)) -> Bank:
    groups = (LayerGroup("conv", ("a",)), LayerGroup("fc", ("b", "c")))
    shapes = {"a": (sizes[0],), "b": (sizes[1] - 1,), "c": (1,)}
    made_bank = Bank(Manifest(groups, shapes, dict.fromkeys(shapes, torch.float32)), tuple(shapes), CPU)
    draw = torch.Generator().manual_seed(seed)
    for i in range(count):
        made_bank.add([str(i)], {name: torch.randn(shape, generator=draw) for name, shape in shapes.items()})
    return made_bank


def signs_of(projection: Projection, of: Bank, d: int) -> Tensor:
    """R itself [P, L, d], from the projections of models with one scalar of 1."""
    units = Bank(Manifest(of_groups(), {"a": (6,), "b": (6,)}, dict.fromkeys("ab", torch.float32)), ("a", "b"), CPU)
    for at in range(6):
        one = torch.nn.functional.one_hot(torch.tensor(at), 6).float()
        units.add([str(at)], {"a": one, "b": one})
    assert {g: t.shape[1] for g, t in units.arrays.items()} == {g: t.shape[1] for g, t in of.arrays.items()}
    return projection.of(units, range(6))[..., :d]


def of_groups() -> tuple[LayerGroup, ...]:
    return (LayerGroup("conv", ("a",)), LayerGroup("fc", ("b",)))


def test_projections_of_a_model_do_not_depend_on_what_else_is_there() -> None:
    many, few = bank(4), bank(1)
    assert all(torch.equal(many.arrays[group][:1], few.arrays[group]) for group in few.groups)
    projection, other = Projection(8, many, 3), Projection(8, few, 3)
    every = projection.of(many, range(4))
    assert every.shape == (4, 2, 8)
    assert every.dtype == torch.float64
    assert torch.equal(every[[3, 1]], projection.of(many, [3, 1]))
    assert torch.equal(every[:1], other.of(few, [0]))
    assert projection.of(many, []).shape[0] == 0


def test_the_seed_decides_the_signs_which_differ_between_layer_groups() -> None:
    models = bank(1, sizes=(6, 6))
    here, there, other = (signs_of(Projection(6, models, seed), models, 6) for seed in (3, 3, 4))
    assert torch.equal(here, there)
    assert not torch.equal(here, other)
    for unit in (0, 1):
        assert torch.equal(here[:, unit].abs(), torch.eye(6, dtype=torch.float64))  # a sign for each scalar
    assert not torch.equal(here[:, 0], here[:, 1])
