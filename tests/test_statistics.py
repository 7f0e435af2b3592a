"""Statistics of a comparison: against scipy, by hand, and by simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats as oracle

from fedham_flwr.analysis.budgets import area, needed, reached
from fedham_flwr.analysis.fairness import Duel, duel, gini, jain, sign_test
from fedham_flwr.analysis.ranks import friedman, mean_rank, shared_ranks, signed_rank
from fedham_flwr.analysis.statistics import Interval, holm, mean_interval, paired, quantile, two_sided, verdict
from fedham_flwr.core.seeding import stream

CLOSE = {"rel": 1e-12, "abs": 1e-12}
# Extra hours of sleep with two drugs of ten patients (Cushny and Peebles, 1905), Student's own example of 1908.
DEXTRO = (0.7, -1.6, -0.2, -1.2, -0.1, 3.4, 3.7, 0.8, 0.0, 2.0)
LAEVO = (1.9, 0.8, 1.1, 0.1, -0.1, 4.4, 5.5, 1.6, 4.6, 3.4)

numbers = st.integers(-1000, 1000).map(lambda whole: whole / 10)
pairs = st.lists(st.tuples(numbers, numbers), min_size=2, max_size=12)


# ---- means and differences over seeds --------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [2, 3, 5, 30])
def test_mean_and_difference_are_those_of_scipy(count: int) -> None:
    draw = stream(0, "test", count)
    for _ in range(20):
        ours, theirs = draw.normal(0.8, 0.1, (2, count))
        found = mean_interval(list(ours))
        wanted = oracle.t.interval(0.95, count - 1, ours.mean(), oracle.sem(ours))
        assert (found.mean, found.low, found.high) == pytest.approx((ours.mean(), *wanted), **CLOSE)
        test = oracle.ttest_rel(ours, theirs)
        gain = paired(list(ours), list(theirs))
        assert gain.p == pytest.approx(test.pvalue, **CLOSE)
        ends = test.confidence_interval(0.95)
        assert (gain.interval.low, gain.interval.high) == pytest.approx((ends.low, ends.high), **CLOSE)


def test_quantile_and_tail_are_those_of_scipy() -> None:
    for freedom in (1, 2, 7, 100):
        assert quantile(freedom) == pytest.approx(oracle.t.ppf(0.975, freedom), **CLOSE)
        assert quantile(freedom, 0.8) == pytest.approx(oracle.t.ppf(0.9, freedom), **CLOSE)
        for t in (0.0, -1.3, 12.0):
            assert two_sided(t, freedom) == pytest.approx(2 * oracle.t.sf(abs(t), freedom), **CLOSE)


def test_the_interval_is_that_of_students_sleep_data() -> None:
    # R: t.test(laevo, dextro, paired = TRUE) prints 0.7001142, 2.4598858 and p = 0.002833.
    found = paired(LAEVO, DEXTRO)
    assert (found.interval.mean, found.interval.low, found.interval.high) == pytest.approx(
        (1.58, 0.7001142, 2.4598858), abs=1e-7
    )
    assert found.p == pytest.approx(0.002833, abs=1e-6)


def test_the_interval_of_two_pairs_by_hand() -> None:
    # Differences 1 and 3: mean 2, s = sqrt(2), s / sqrt(2) = 1; with one degree of freedom t is tan(0.475 pi) at 95 %,
    # and P(|T| > 2) is 1 - 2 atan(2) / pi.
    t, found = math.tan(math.pi * 0.475), paired([2, 5], [1, 2])
    assert (found.interval.low, found.interval.high) == pytest.approx((2 - t, 2 + t))
    assert found.interval.half == pytest.approx(t)
    assert found.p == pytest.approx(1 - 2 * math.atan(2) / math.pi)
    half = paired([2, 5], [1, 2], confidence=0.5).interval
    assert (half.low, half.high) == pytest.approx((1, 3))  # tan(pi / 4) = 1


def test_one_seed_has_no_interval_and_no_p() -> None:
    assert mean_interval([0.5]) == Interval(0.5, why="one seed: no interval")
    found = paired([3.0], [1.0])
    assert (found.interval, found.p) == (Interval(2.0, why="one seed: no interval"), None)
    assert found.interval.half is None
    assert verdict(found.interval) == "one seed: no interval"


def test_seeds_that_decide_nothing_have_no_interval() -> None:
    assert mean_interval([0.1 + 0.2, 0.3, 0.3]).why == "no spread over seeds: no interval"  # they differ in rounding
    always, never = paired([0.3, 0.5, 0.7], [0.2, 0.4, 0.6]), paired([0.1, 0.4], [0.1, 0.4])
    assert (always.p, verdict(always.interval)) == (None, "no spread over seeds: no interval")
    assert (never.p, verdict(never.interval)) == (1.0, "not distinguishable")


def test_nothing_is_compared_without_pairs() -> None:
    with pytest.raises(ValueError, match="there is no pair to compare"):
        paired([], [])
    with pytest.raises(ValueError, match="shorter"):
        paired([1.0, 2.0], [1.0])
    with pytest.raises(ValueError, match="there is no value"):
        mean_interval([])


@given(pairs)
def test_who_is_compared_with_whom_changes_the_sign_alone(some: list[tuple[float, float]]) -> None:
    ours, theirs = zip(*some, strict=True)
    there, back = paired(ours, theirs), paired(theirs, ours)
    assert back.p == there.p
    assert back.interval.mean == -there.interval.mean
    if there.interval.low is not None:
        assert (back.interval.low, back.interval.high) == (-there.interval.high, -there.interval.low)  # type: ignore[operator]
    words = {"above": "below", "below": "above"}
    assert verdict(back.interval) == words.get(verdict(there.interval), verdict(there.interval))


@given(pairs, numbers)
def test_what_is_common_to_a_pair_does_not_count(some: list[tuple[float, float]], shift: float) -> None:
    ours, theirs = zip(*some, strict=True)
    noisy = [at * shift for at in range(len(some))]  # as another seed has other data
    moved = paired(
        [a + n for a, n in zip(ours, noisy, strict=True)], [b + n for b, n in zip(theirs, noisy, strict=True)]
    )
    assert moved.interval.mean == pytest.approx(paired(ours, theirs).interval.mean, abs=1e-6)


# ---- Holm and the verdict --------------------------------------------------------------------------------------------


def test_holm_by_hand() -> None:
    # Four tests: 0.005 * 4, 0.01 * 3, 0.03 * 2, and 0.04 * 1, which may not be below the one before it.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.7, 0.6]) == [1.0, 1.0]
    assert holm([0.02, None, 0.03]) == [0.04, None, 0.04]  # what was not tested does not count: 2, not 3
    assert holm([]) == []


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_rejects_what_its_definition_rejects(ps: list[float]) -> None:
    """Step down: reject the i-th smallest while it is at most level / (m - i + 1), then stop."""
    order, rejected = sorted(range(len(ps)), key=lambda at: (ps[at], at)), set()
    for step, at in enumerate(order):
        if ps[at] * (len(ps) - step) > 0.05:
            break
        rejected.add(at)
    assert {at for at, p in enumerate(holm(ps)) if p is not None and p <= 0.05} == rejected


def test_above_is_said_only_where_interval_and_adjusted_p_both_say_it() -> None:
    above, below, around = Interval(1, 0.5, 1.5, 3), Interval(-1, -1.5, -0.5, 3), Interval(1, -0.1, 2.1, 3)
    assert [verdict(each) for each in (above, below, around)] == ["above", "below", "not distinguishable"]
    assert [verdict(above, p) for p in (0.05, 0.051)] == ["above", "not distinguishable"]
    assert verdict(around, 0.01) == "not distinguishable"


# ---- by simulation ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [3, 5])
def test_intervals_of_simulated_seeds_cover_95_percent(count: int) -> None:
    runs = 4000
    found = [mean_interval(values) for values in stream(1, "test", count).normal(0.7, 0.02, (runs, count))]
    covered = sum(each.low <= 0.7 <= each.high for each in found)  # type: ignore[operator]
    assert abs(covered / runs - 0.95) < 4 * math.sqrt(0.95 * 0.05 / runs)


def test_holm_keeps_the_probability_of_any_false_finding_at_5_percent() -> None:
    """Five methods that are no better than the reference, with which and with the seed they have noise in common."""
    runs, draw, false = 1500, stream(2, "test"), 0
    for _ in range(runs):
        values = 0.7 + draw.normal(0, 0.02, (6, 4)) + draw.normal(0, 0.05, 4)
        gains = [paired(values[at], values[0]) for at in range(1, 6)]
        false += any(
            verdict(gain.interval, p) in ("above", "below")
            for gain, p in zip(gains, holm([gain.p for gain in gains]), strict=True)
        )
    assert false / runs <= 0.05 + 4 * math.sqrt(0.05 * 0.95 / runs)
    assert false > 0  # the test can fail


# ---- ranks -----------------------------------------------------------------------------------------------------------


@given(st.lists(st.integers(0, 5), min_size=1, max_size=9))
def test_ranks_are_those_of_scipy(values: list[int]) -> None:
    assert shared_ranks(values) == list(oracle.rankdata(values))
    assert shared_ranks(values, higher=True) == list(oracle.rankdata([-value for value in values]))


def test_friedman_is_that_of_scipy_with_and_without_ties() -> None:
    draw = stream(3, "test")
    for tasks, methods in ((3, 3), (5, 4), (10, 7)):
        for values in (draw.normal(size=(tasks, methods)), draw.integers(0, 4, (tasks, methods))):
            wanted = oracle.friedmanchisquare(*np.asarray(values, dtype=float).T)
            assert friedman(values.tolist()) == pytest.approx((wanted.statistic, wanted.pvalue), **CLOSE)


def test_friedman_by_hand_and_what_it_refuses() -> None:
    # Rank sums 3, 6, 9 of three tasks: 12 / (3 * 3 * 4) * 126 - 3 * 3 * 4 = 6, and P(chi² > 6 with 2) = exp(-3).
    assert friedman([[1, 2, 3]] * 3) == pytest.approx((6.0, math.exp(-3)))
    with pytest.raises(ValueError, match="2 tasks and 3 methods, wanted at least three of both"):
        friedman([[1, 2, 3]] * 2)
    with pytest.raises(ValueError, match="all methods are equal"):
        friedman([[1, 1, 1]] * 3)


def test_a_mean_rank_has_an_interval_within_what_ranks_can_be() -> None:
    # Ranks 1, 1, 2: mean 4/3, s / sqrt(3) = 1/3, and t = 4.302653 with two degrees of freedom.
    found = mean_rank([1, 1, 2], 3)
    assert (found.mean, found.low, found.high) == pytest.approx((4 / 3, 1.0, 4 / 3 + 4.302652729911275 / 3))
    assert mean_rank([1, 3], 3).high == 3.0
    assert mean_rank([2], 3).why == "one task: no interval"
    assert mean_rank([2, 2], 3).why == "the same rank on each task: no interval"


def test_ranks_over_few_tasks_are_covered_by_the_t_interval_and_not_by_a_bootstrap_or_by_pairs_of_task_and_seed() -> (
    None
):
    """Six methods whose order differs from task to task; three tasks, three seeds each; the rank of the second."""
    draw, base = stream(5, "test"), np.linspace(0, 1, 6)

    def scores(count: int) -> np.ndarray:
        tasks = base + draw.normal(0, 0.4, (count, 6))
        return np.asarray(tasks[:, None, :] + draw.normal(0, 0.1, (count, 3, 6)))

    def rank(values: np.ndarray) -> np.ndarray:
        return np.asarray(1.0 + (values < values[..., 1:2]).sum(-1))

    def within(interval: Interval) -> bool:
        return interval.low is not None and interval.high is not None and interval.low <= true <= interval.high

    true, held = float(rank(scores(100_000).mean(1)).mean()), np.zeros(3)
    for _ in range(500):
        values = scores(3)
        found = rank(values.mean(1))
        low, high = np.quantile(found[draw.integers(0, 3, (400, 3))].mean(1), [0.025, 0.975])
        pairs_of_both = mean_rank(list(rank(values).ravel()), 6)
        held += within(mean_rank(list(found), 6)), low <= true <= high, within(pairs_of_both)
    tasks, bootstrap, pairs_held = held / 500
    assert tasks > 0.9
    assert bootstrap < 0.8
    assert pairs_held < 0.8


@pytest.mark.parametrize("count", [3, 6, 9])
def test_the_signed_rank_test_is_that_of_scipy(count: int) -> None:
    draw = stream(4, "test", count)
    for _ in range(10):
        ours, theirs = draw.normal(size=(2, count))
        wanted = oracle.wilcoxon(ours, theirs, method="exact").pvalue
        assert signed_rank(list(ours), list(theirs)) == pytest.approx(wanted, **CLOSE)


def test_three_seeds_can_never_show_anything_by_signs_and_ties_share_their_rank() -> None:
    assert signed_rank([1, 2, 3], [0, 0, 0]) == 0.25
    assert signed_rank([1] * 6, [0] * 6) == 2 / 64
    assert signed_rank([1, 2], [1, 2]) == 1.0
    # Differences 1, 1, -1 have rank 2 each: of the 8 sums 0, 2, 2, 2, 4, 4, 4, 6 four are at most 2, twice that is 1.
    assert signed_rank([1, 1, -1], [0, 0, 0]) == 1.0
    # Differences 1, 1, 2, 3 (ranks 1.5, 1.5, 3, 4), the first negative: sums at most 1.5 are 0, 1.5, 1.5 of 16.
    assert signed_rank([-1, 1, 2, 3], [0, 0, 0, 0]) == pytest.approx(2 * 3 / 16)


# ---- over clients ----------------------------------------------------------------------------------------------------


def test_a_duel_counts_every_client_that_both_have_and_no_difference_is_too_small() -> None:
    ours, theirs = {"a": 0.9, "b": 0.5, "c": 0.1, "d": 1.0}, {"a": 0.9 - 1e-9, "b": 0.5, "c": 0.2, "e": 0.0}
    assert duel(ours, theirs) == Duel(won=1, tied=1, lost=1)
    assert duel(ours, theirs, higher=False) == Duel(won=1, tied=1, lost=1)
    assert duel({"a": (0.7 + 0.9) / 2, "b": (0.1 + 0.2) / 2}, {"a": 0.8, "b": 0.15}) == Duel(
        0, 2, 0
    )  # but for rounding
    assert duel({"a": 2.0, "b": 3.0}, {"a": 1.0, "b": 2.0}, higher=False) == Duel(0, 0, 2)


@given(st.integers(0, 30), st.integers(0, 30))
def test_the_sign_test_is_that_of_scipy(won: int, lost: int) -> None:
    wanted = oracle.binomtest(won, won + lost).pvalue if won + lost else 1.0
    assert sign_test(Duel(won, 7, lost)) == pytest.approx(wanted, **CLOSE)


def test_fairness_by_hand() -> None:
    assert (jain([0.5] * 4), gini([0.5] * 4)) == pytest.approx((1.0, 0.0))
    assert (jain([0, 0, 0, 2]), gini([0, 0, 0, 2])) == pytest.approx((1 / 4, 3 / 4))
    assert jain([1, 2, 3]) == pytest.approx(36 / (3 * 14))
    assert (jain([-1, 2]), gini([-1, 2]), jain([0, 0]), gini([])) == (None, None, None, None)


@given(st.lists(st.floats(0.01, 10), min_size=1, max_size=12))
def test_gini_is_the_mean_difference_of_all_pairs(values: list[float]) -> None:
    apart = sum(abs(a - b) for a in values for b in values)
    assert gini(values) == pytest.approx(apart / (2 * len(values) ** 2 * (sum(values) / len(values))), abs=1e-12)


# ---- budgets ---------------------------------------------------------------------------------------------------------

CURVE = ((0, 0.1), (10, 0.5), (20, 0.4), (40, 0.8))


def test_a_budget_buys_the_last_evaluation_within_it() -> None:
    assert [reached(CURVE, budget) for budget in (-1, 0, 9.9, 10, 25, 99)] == [None, 0.1, 0.1, 0.5, 0.4, 0.8]
    assert reached((), 5) is None


def test_a_target_costs_what_was_spent_at_the_first_evaluation_that_is_as_good() -> None:
    assert [needed(CURVE, target) for target in (0.1, 0.45, 0.5, 0.6, 0.9)] == [0, 10, 10, 40, None]
    assert [needed(CURVE, target, higher=False) for target in (0.4, 0.1, 0.05)] == [0, 0, None]


def test_the_area_is_the_mean_of_the_steps() -> None:
    assert area(CURVE, 0, 40) == pytest.approx((10 * 0.1 + 10 * 0.5 + 20 * 0.4) / 40)
    assert area(CURVE, 5, 30) == pytest.approx((5 * 0.1 + 10 * 0.5 + 10 * 0.4) / 25)
    assert area(CURVE, 40, 50) == pytest.approx(0.8)
    assert area(CURVE, -1, 40) is None
    with pytest.raises(ValueError, match="from 4 to 4 there is nothing"):
        area(CURVE, 4, 4)
