"""Ranks: of methods over tasks, where ties share and the best has rank 1; and of differences. T tasks, k methods."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from fedham_flwr.analysis.statistics import CONFIDENCE, Interval, mean_interval

EXACT = 6
"""Pairs from which on the signed-rank test can give a p below 0.05: 2 / 2^6 is 0.031."""
ONE_TASK = "one task: no interval"
ALWAYS = "the same rank on each task: no interval"


class Friedman(NamedTuple):
    """Friedman's test.

    Attributes:
        statistic: chi-square, with k - 1 degrees of freedom.
        p: of ranks at least as uneven if all methods were equal.
    """

    statistic: float
    p: float


def shared_ranks(values: Sequence[float], higher: bool = False) -> list[float]:
    """The rank of each value; equal ones share the mean of their places.

    Args:
        values: k of them.
        higher: whether the highest has rank 1, and not the lowest.
    """
    given = np.asarray(values, dtype=np.float64) * (-1 if higher else 1)
    below = (given[None, :] < given[:, None]).sum(1)
    same = (given[None, :] == given[:, None]).sum(1)
    return [float(rank) for rank in below + (same + 1) / 2]


def mean_rank(ranks: Sequence[float], methods: int, confidence: float = CONFIDENCE) -> Interval:
    """The mean of a method's ranks over tasks with Student's interval, cut to what a rank can be.

    The unit is the task, whose rank is that of the means over seeds: seeds of one task are no further tasks, and
    a rank over tasks is meant to say something about tasks.

    Args:
        ranks: T of them.
        methods: k.
        confidence: of the interval, in (0, 1).
    """
    found = mean_interval(ranks, confidence)
    if found.low is None or found.high is None:
        return Interval(found.mean, count=len(ranks), why=ONE_TASK if len(ranks) == 1 else ALWAYS)
    return Interval(found.mean, max(1.0, found.low), min(float(methods), found.high), len(ranks))


def friedman(values: Sequence[Sequence[float]]) -> Friedman:
    """Friedman's test of whether methods differ at all, corrected for ties.

    chi² = (12 / (T k (k + 1)) sum_j R_j² - 3 T (k + 1)) / C over the rank sums R_j, where
    C = 1 - sum (t³ - t) / (T k (k² - 1)) over groups of t tied values (Friedman, The use of ranks, JASA 1937; over data
    sets: Demšar, Statistical comparisons of classifiers over multiple data sets, JMLR 2006). The distribution is
    rough for few tasks, where p is too high rather than too low.

    Args:
        values: [T, k], T and k at least 3.

    Raises:
        ValueError: there are fewer, or no two values of a task differ.
    """
    from scipy.special import chdtrc

    tasks, methods = len(values), len(values[0]) if values else 0
    if tasks < 3 or methods < 3:
        raise ValueError(f"{tasks} tasks and {methods} methods, wanted at least three of both")
    ranks = np.array([shared_ranks(row) for row in values])
    ties = sum(float(count**3 - count) for row in values for count in np.unique(row, return_counts=True)[1])
    correction = 1 - ties / (tasks * methods * (methods**2 - 1))
    if correction <= 0:
        raise ValueError("all methods are equal on each task")
    raw = 12 / (tasks * methods * (methods + 1)) * float((ranks.sum(0) ** 2).sum()) - 3 * tasks * (methods + 1)
    return Friedman(raw / correction, float(chdtrc(methods - 1, raw / correction)))


def signed_rank(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """Exact two-sided p of Wilcoxon's signed-rank test, a check that takes no distribution for granted.

    Pairs without a difference are left out, ties share their mean rank, and the distribution is that over all 2^n signs
    (Wilcoxon, Individual comparisons by ranking methods, Biometrics 1945). The smallest p of n pairs is 2 / 2^n: 0.25
    with three, so that three seeds can never show anything by it; below 0.05 from six pairs on.

    Args:
        ours: n values, one for each seed.
        theirs: those of the same seeds, in the same order.
    """
    differences = [our - their for our, their in zip(ours, theirs, strict=True) if our != their]
    if not differences:
        return 1.0
    # Doubled, ranks that are shared by a tie are whole numbers too.
    doubled = [round(2 * rank) for rank in shared_ranks([abs(each) for each in differences])]
    ways = np.zeros(sum(doubled) + 1)
    ways[0] = 1.0
    for rank in doubled:
        ways[rank:] = ways[rank:] + ways[: len(ways) - rank]
    positive = sum(rank for rank, each in zip(doubled, differences, strict=True) if each > 0)
    tail = min(positive, sum(doubled) - positive)
    return min(1.0, 2 * float(ways[: tail + 1].sum()) / 2.0 ** len(differences))
