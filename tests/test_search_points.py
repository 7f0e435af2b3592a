"""Points of a search space: values of the unit cube, grids, and points that are spread evenly."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from spaces_of_tests import MIXED, RATE

from fedham_flwr.core.search_space import Choice, Range, Space
from fedham_flwr.study.points import every, grid, identity, size, spread, start_of, value_at


def test_the_points_of_a_grid_by_hand() -> None:
    # 4 trials of 2 dimensions: 2 levels each. The rate 10^-3..10^0 is cut at 10^-1.5, and its start lies in the upper
    # half; the middle of the lower one is 10^-2.25. Layers 1..4 are cut at 2.5, and 2 lies in the lower half; 3.5, the
    # middle of the upper one, is rounded to the even 4.
    space = {"rate": RATE, "layers": MIXED["layers"]}
    assert grid(space, 4) == [
        {"rate": 0.1, "layers": 2}, {"rate": 0.1, "layers": 4}, {"rate": 0.005623, "layers": 2},
        {"rate": 0.005623, "layers": 4},
    ]  # fmt: skip
    # 7 trials: 3 levels of the first dimension and 2 of the second.
    assert [list(point.values()) for point in grid({"a": Choice((1, 2, 3, 4), 3), "b": Choice("xy", "x")}, 7)] == [
        [3, "x"], [3, "y"], [1, "x"], [1, "y"], [2, "x"], [2, "y"],
    ]  # fmt: skip
    assert grid({"share": MIXED["share"]}, 5) == [{"share": at} for at in (0.25, 0.1, 0.5, 0.7, 0.9)]
    assert grid({}, 5) == [{}]


@given(st.integers(1, 40))
@settings(max_examples=30, deadline=None)
def test_a_grid_has_at_most_so_many_points_the_start_first_and_none_twice(most: int) -> None:
    points = grid(MIXED, most)
    assert len(points) <= most
    assert points[0] == start_of(MIXED)
    assert len(set(map(identity, points))) == len(points)


@pytest.mark.parametrize("dimension", MIXED.values(), ids=MIXED)
def test_places_are_shared_out_equally_and_in_order(dimension: Any) -> None:
    values = [value_at(dimension, (at + 0.5) / 1200) for at in range(1200)]
    if isinstance(dimension, Choice):
        assert [len(list(same)) for _, same in itertools.groupby(values)] == [400] * 3
        return
    assert values == sorted(values)
    assert min(values) >= dimension.low
    assert max(values) <= dimension.high
    assert all(type(value) is (int if dimension.whole else float) for value in values)
    middle = 0.0316 if dimension.log else (dimension.low + dimension.high) / 2  # 10^-1.5
    assert np.median(values) == pytest.approx(middle, rel=0.02)
    if dimension.whole:
        assert [values.count(number) for number in (1, 2, 3, 4)] == [300] * 4


def test_whole_numbers_of_a_logarithmic_range_are_all_reached() -> None:
    # From 0.5 to 4.5: 1 has ln 3 of ln 9, a half.
    values = [value_at(Range(1, 4, 2, log=True, whole=True), (at + 0.5) / 1000) for at in range(1000)]
    shares = [math.log((n + 0.5) / (n - 0.5)) / math.log(9) for n in (1, 2, 3, 4)]
    assert [values.count(n) / 1000 for n in (1, 2, 3, 4)] == pytest.approx(shares, abs=0.002)


def test_values_are_short_and_never_outside() -> None:
    for low, high, log in [(0.001, 0.2, True), (1.0, 1.001, True), (0.0, 1e-6, False), (3.0, 3e5, False)]:
        dimension = Range(low, high, low, log=log)
        values = [value_at(dimension, (at + 0.5) / 3000) for at in range(3000)]
        assert low <= min(values)
        assert max(values) <= high
        assert len(set(values)) > 2000
        assert max(len(repr(value)) for value in values) <= 11


def test_spread_points_by_hand() -> None:
    # Sobol's first numbers after 0 are 1/2, 3/4, 1/4, 3/8. The rate has three decades, and starts after two: half
    # of them further are 0.5 decades, three quarters 1.25, a quarter 2.75, three eighths 0.125.
    rates = [place["rate"] for place in itertools.islice(spread({"rate": RATE}), 4)]
    assert rates == pytest.approx([10 ** (at - 3) for at in (0.5, 1.25, 2.75, 0.125)], rel=1e-3)
    # Of a choice's three values b is the second, and a whole number is one of four.
    assert [place["kind"] for place in itertools.islice(spread({"kind": MIXED["kind"]}), 4)] == ["c", "a", "c", "c"]
    assert [place["layers"] for place in itertools.islice(spread({"layers": MIXED["layers"]}), 4)] == [4, 1, 3, 3]


@given(st.permutations(list(MIXED)), st.permutations(list(MIXED)), st.integers(1, 3))
@settings(max_examples=40, deadline=None)
def test_spread_points_do_not_depend_on_what_else_is_searched(first: list[str], more: list[str], both: int) -> None:
    common = first[:both]
    spaces: list[Space] = [
        {key: MIXED[key] for key in common},
        {key: MIXED[key] for key in (*common, *(key for key in more if key not in common))},
    ]
    few, many = ([{key: found[key] for key in common} for found in itertools.islice(spread(one), 9)] for one in spaces)
    assert few == many


def test_how_evenly_spread_points_lie() -> None:
    # Of one dimension 2^n of them, with the start, lie 2^-n apart; of two, each of 64 boxes has one.
    share = Range(0.0, 1.0, 0.3)
    numbers = [0.3, *(float(found["a"]) for found in itertools.islice(spread({"a": share}), 31))]
    assert np.diff(sorted(numbers)) == pytest.approx(1 / 32, abs=2e-4)
    both = {"a": Range(0.0, 1.0, 0.0), "b": Range(0.0, 1.0, 0.0)}
    places = [start_of(both), *itertools.islice(spread(both), 63)]
    assert len({(int(float(found["a"]) * 8 + 1e-3), int(float(found["b"]) * 8 + 1e-3)) for found in places}) == 64


@pytest.mark.parametrize("count", [2, 3, 4, 5, 8, 12])
def test_spread_choices_and_whole_numbers_are_those_of_exact_fractions(count: int) -> None:
    # Sobol's first dimension: the bits of n ^ (n >> 1) in the reverse order, after the point.
    sobol = [Fraction(int(f"{n ^ n >> 1:06b}"[::-1], 2), 64) for n in range(1, 64)]
    for start in range(count):
        exact = [int((Fraction(3 * start + 1, 3 * count) + at) % 1 * count) for at in sobol]
        chosen = itertools.islice(spread({"a": Choice(tuple(range(count)), start)}), 63)
        whole = itertools.islice(spread({"a": Range(0, count - 1, start, whole=True)}), 63)
        assert [found["a"] for found in chosen] == [found["a"] for found in whole] == exact


def test_every_point_of_a_small_space() -> None:
    small: Space = {"layers": Range(1, 2, 1, whole=True), "kind": Choice(("a", "b"), "a")}
    assert [tuple(point.values()) for point in every(small)] == [(1, "a"), (1, "b"), (2, "a"), (2, "b")]
    assert (size(small), size(MIXED), size({})) == (4, math.inf, 1)
