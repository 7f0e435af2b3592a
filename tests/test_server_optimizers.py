"""The server's optimisers: by hand, against torch's and a naive loop, and what they cannot do."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from fedham_flwr.core import server_optimizers
from fedham_flwr.core.aggregation import ServerSettings
from fedham_flwr.core.server_optimizers import FIRST, SECOND, Moved, begin, step

ADAPTIVE = ("adam", "yogi", "adagrad")


def settings(optimizer: Any, **more: Any) -> ServerSettings:
    return ServerSettings(optimizer=optimizer, **more)


def walk(chosen: ServerSettings, start: Tensor, ways: list[Tensor]) -> list[Moved]:
    """Steps of which each aggregate is so far from the tensor as it then is."""
    state = begin(chosen, {"w": start})
    now, found = start, []
    first, second = state[FIRST + "w"], state.get(SECOND + "w")
    for way in ways:
        found.append(step(chosen, now, now + way, first, second))
        now, first, second = found[-1]
    return found


def doubles(*numbers: float) -> list[Tensor]:
    return [torch.tensor([number], dtype=torch.float64) for number in numbers]


def test_momentum_by_hand() -> None:
    found = walk(settings("momentum", momentum=0.5, learning_rate=2.0), *_from(10.0, 1.0, -4.0, 0.0))
    # u = 1, 0.5 - 4 = -3.5, -1.75; w = 10 + 2, 12 - 7, 5 - 3.5
    assert [moved.after.item() for moved in found] == [12.0, 5.0, 1.5]
    assert [moved.first.item() for moved in found] == [1.0, -3.5, -1.75]


def _from(start: float, *ways: float) -> tuple[Tensor, list[Tensor]]:
    return doubles(start)[0], doubles(*ways)


@pytest.mark.parametrize(
    ("optimizer", "second"),
    [
        ("adam", [0.75 * 4 + 0.25 * 9, 0.75 * 5.25 + 0.25 * 1]),
        ("yogi", [4 + 0.25 * 9, 6.25 - 0.25 * 1]),  # the square is first above v, then below it
        ("adagrad", [4.0 + 9, 13 + 1]),
    ],
)
def test_the_adaptive_ones_by_hand(optimizer: str, second: list[float]) -> None:
    chosen = settings(optimizer, momentum=0.5, beta2=0.75, tau=2.0, learning_rate=0.5)
    found = walk(chosen, *_from(10.0, 3.0, -1.0))
    first = [0.5 * 3, 0.5 * 1.5 - 0.5 * 1]
    after = [10 + 0.5 * first[0] / (math.sqrt(second[0]) + 2)]
    after.append(after[0] + 0.5 * first[1] / (math.sqrt(second[1]) + 2))
    assert [moved.first.item() for moved in found] == pytest.approx(first)
    assert [moved.second.item() for moved in found if moved.second is not None] == pytest.approx(second)
    assert [moved.after.item() for moved in found] == pytest.approx(after)


# ---- torch's -----------------------------------------------------------------------------------------------------

DRAW = torch.Generator().manual_seed(0)
START, WAYS = torch.randn(5, generator=DRAW).double(), list(torch.randn(7, 5, generator=DRAW).double())


def by_torch(optimizer: torch.optim.Optimizer, param: Tensor, before_step: Any = None) -> list[Tensor]:
    """A torch optimiser's steps, whose gradient is the way back."""
    found = []
    for number, way in enumerate(WAYS, 1):
        param.grad = -way
        if before_step:
            before_step(number)
        optimizer.step()
        found.append(param.detach().clone())
    return found


def assert_same(mine: list[Moved], theirs: list[Tensor]) -> None:
    for moved, other in zip(mine, theirs, strict=True):
        torch.testing.assert_close(moved.after, other, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("beta", [0.0, 0.9])
def test_momentum_is_torchs_sgd_on_the_way_back(beta: float) -> None:
    param = torch.nn.Parameter(START.clone())
    theirs = by_torch(torch.optim.SGD([param], lr=0.3, momentum=beta), param)
    assert_same(walk(settings("momentum", momentum=beta, learning_rate=0.3), START, WAYS), theirs)


def test_adam_is_torchs_without_its_correction_of_the_first_steps() -> None:
    param = torch.nn.Parameter(START.clone())
    optimizer = torch.optim.Adam([param], betas=(0.9, 0.99))
    state = {"step": torch.tensor(0.0), "exp_avg": torch.zeros_like(START)}
    optimizer.state[param] = {**state, "exp_avg_sq": torch.full_like(START, 0.05**2)}

    def uncorrected(number: int) -> None:
        root = math.sqrt(1 - 0.99**number)
        optimizer.param_groups[0] |= {"lr": 0.3 * (1 - 0.9**number) / root, "eps": 0.05 / root}

    theirs = by_torch(optimizer, param, uncorrected)
    assert_same(walk(settings("adam", learning_rate=0.3, tau=0.05), START, WAYS), theirs)


def test_adagrad_without_momentum_is_torchs() -> None:
    param = torch.nn.Parameter(START.clone())
    optimizer = torch.optim.Adagrad([param], lr=0.3, initial_accumulator_value=0.05**2, eps=0.05)
    theirs = by_torch(optimizer, param)
    assert_same(walk(settings("adagrad", learning_rate=0.3, tau=0.05, momentum=0.0), START, WAYS), theirs)


def naive(chosen: ServerSettings, start: float, ways: list[float]) -> list[float]:
    """One number in Python's floats, as the papers write it."""
    w, m, found, eta = start, 0.0, [], server_optimizers.rate(chosen)
    v = chosen.tau**2
    for d in ways:
        if chosen.optimizer == "momentum":
            m = chosen.momentum * m + d
            w = w + eta * m
        else:
            m = chosen.momentum * m + (1 - chosen.momentum) * d
            if chosen.optimizer == "adagrad":
                v = v + d * d
            elif chosen.optimizer == "adam":
                v = chosen.beta2 * v + (1 - chosen.beta2) * d * d
            else:
                v = v - (1 - chosen.beta2) * d * d * ((v > d * d) - (v < d * d))
            w = w + eta * m / (math.sqrt(v) + chosen.tau)
        found.append(w)
    return found


ways_of = st.lists(st.floats(-100, 100), min_size=1, max_size=6)
unit = st.floats(0, 0.99)


@pytest.mark.parametrize("optimizer", ["momentum", *ADAPTIVE])
@given(ways=ways_of, beta1=unit, beta2=unit, rate=st.floats(0.0, 3.0))
def test_each_against_a_naive_loop(optimizer: str, ways: list[float], beta1: float, beta2: float, rate: float) -> None:
    chosen = settings(optimizer, momentum=beta1, beta2=beta2, learning_rate=rate)
    found = [moved.after.item() for moved in walk(chosen, *_from(1.0, *ways))]
    assert found == pytest.approx(naive(chosen, 1.0, ways), rel=1e-9, abs=1e-9)


# ---- invariants --------------------------------------------------------------------------------------------------


@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=2, max_size=9))
def test_no_momentum_and_rate_1_is_the_aggregate_bit_for_bit(numbers: list[float]) -> None:
    before, aggregate = torch.tensor(numbers[:-1]), torch.tensor(numbers[1:])
    moved = step(settings("momentum", momentum=0.0), before, aggregate, torch.ones_like(before))
    assert torch.equal(moved.after.view(torch.int32), aggregate.view(torch.int32))


@given(
    st.lists(st.sampled_from((0.0, 1e-6, 0.3, -0.3, 1.0, -5.0, 1e4, -1e7)), min_size=1, max_size=30),
    st.sampled_from((0.0, 0.5, 0.9)),
)
def test_adam_moves_no_number_further_than_is_said_whatever_is_sent(ways: list[float], beta1: float) -> None:
    chosen = settings("adam", momentum=beta1)
    most = server_optimizers.rate(chosen) * (1 - beta1) / math.sqrt(0.01 * (1 - beta1**2 / 0.99))
    found = [0.0, *(moved.after.item() for moved in walk(chosen, *_from(0.0, *ways)))]
    assert max(abs(b - a) for a, b in itertools.pairwise(found)) <= most * (1 + 1e-9)


def test_what_is_remembered_has_the_tensors_type_and_nothing_given_changes() -> None:
    for optimizer in ("momentum", *ADAPTIVE):
        for kind in (torch.float32, torch.float64):
            chosen, before = settings(optimizer), torch.ones(2, 3, dtype=kind)
            state = begin(chosen, {"w": before})
            copies = {name: tensor.clone() for name, tensor in state.items()}
            moved = step(chosen, before, before + 1, state[FIRST + "w"], state.get(SECOND + "w"))
            assert {tensor.dtype for tensor in moved if tensor is not None} == {kind}
            assert all(torch.equal(state[name], copies[name]) for name in state)
            assert torch.equal(before, torch.ones(2, 3, dtype=kind))
    assert begin(ServerSettings(), {"w": torch.ones(3)}) == {}


def test_the_rates_where_none_is_given() -> None:
    assert [server_optimizers.rate(settings(name)) for name in ("momentum", *ADAPTIVE)] == [1.0, 0.01, 0.01, 0.01]
    assert server_optimizers.rate(settings("adam", learning_rate=0.3)) == 0.3
