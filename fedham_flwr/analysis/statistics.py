"""Means and paired differences over seeds with their intervals, tests corrected for their number, and verdicts.

The unit is the seed: over clients is averaged first. Letters: n seeds, m comparisons. scipy, which comes with
scikit-learn, is imported when it is needed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np

CONFIDENCE = 0.95
LEVEL = 0.05
"""The most that Holm's adjusted p may be for a difference to be one."""
ONE_SEED: Final = "one seed: no interval"
NO_SPREAD: Final = "no spread over seeds: no interval"
Verdict = Literal["above", "below", "not distinguishable", "one seed: no interval", "no spread over seeds: no interval"]


@dataclass(frozen=True)
class Interval:
    """A mean, and the ends of the interval that holds the true one with a stated confidence.

    Attributes:
        mean: of n values.
        low: None where there is no interval.
        high: None where there is no interval.
        count: n.
        why: there is no interval; empty if there is one.
    """

    mean: float
    low: float | None = None
    high: float | None = None
    count: int = 1
    why: str = ""

    @property
    def half(self) -> float | None:
        """Half of its width; None without an interval."""
        return None if self.low is None or self.high is None else (self.high - self.low) / 2


@dataclass(frozen=True)
class Difference:
    """By how much one method is above another, seed by seed.

    Attributes:
        interval: of the mean difference.
        p: two-sided, of Student's paired test; None where there is no interval.
    """

    interval: Interval
    p: float | None = None


def mean_interval(values: Sequence[float], confidence: float = CONFIDENCE) -> Interval:
    """The mean over seeds with Student's interval: mean ± t s / sqrt(n).

    s is the standard deviation with n - 1, and t the quantile (1 + confidence) / 2 of Student's distribution with n - 1
    degrees of freedom (Student, The probable error of a mean, Biometrika 1908). One value says nothing of the spread,
    and equal values mean that the seed decides nothing: neither has an interval.

    Args:
        values: n of them, one for each seed.
        confidence: of the interval, in (0, 1).

    Raises:
        ValueError: there is no value.
    """
    if not len(values):
        raise ValueError("there is no value to take the mean of")
    if len(values) == 1:
        return Interval(float(values[0]), why=ONE_SEED)
    given = np.asarray(values, dtype=np.float64)
    mean, error = (float(part) for part in mean_and_error(given))
    if _is_zero(error, given):
        return Interval(mean, count=len(values), why=NO_SPREAD)
    half = quantile(len(values) - 1, confidence) * error
    return Interval(mean, mean - half, mean + half, len(values))


def paired(ours: Sequence[float], theirs: Sequence[float], confidence: float = CONFIDENCE) -> Difference:
    """By how much values are above those that they are paired with: the interval of `mean_interval`, and a p.

    p = 2 P(T > |mean| / (s / sqrt(n))), of Student's distribution with n - 1 degrees of freedom: the two-sided paired
    t-test (Student 1908). Equal differences have neither, but differences that are all 0 have p = 1.

    Args:
        ours: n values, one for each seed.
        theirs: those of the same seeds, in the same order.
        confidence: of the interval, in (0, 1).

    Raises:
        ValueError: there is no pair, or somebody has no partner.
    """
    pairs = list(zip(ours, theirs, strict=True))
    if not pairs:
        raise ValueError("there is no pair to compare")
    differences = np.array([our - their for our, their in pairs])
    if len(pairs) > 1 and _is_zero(float(mean_and_error(differences)[1]), np.array(pairs)):
        mean = float(differences.mean())
        return Difference(Interval(mean, count=len(pairs), why=NO_SPREAD), 1.0 if mean == 0 else None)
    interval = mean_interval(list(differences), confidence)
    if interval.low is None:
        return Difference(interval)
    mean, error = mean_and_error(differences)
    return Difference(interval, two_sided(float(mean / error), len(pairs) - 1))


def mean_and_error(values: np.ndarray) -> tuple[Any, Any]:
    """The mean, and its standard error s / sqrt(n).

    Args:
        values: [..., n], n at least 2.

    Returns:
        Both [...].
    """
    return values.mean(-1), values.std(-1, ddof=1) / math.sqrt(values.shape[-1])


def quantile(freedom: int, confidence: float = CONFIDENCE) -> float:
    """The t for which Student's distribution has `confidence` between -t and t.

    Args:
        freedom: its degrees, at least 1.
        confidence: in (0, 1).
    """
    from scipy.special import stdtrit

    return float(stdtrit(freedom, (1 + confidence) / 2))


def two_sided(t: float, freedom: int) -> float:
    """P(|T| > |t|), of Student's distribution.

    Args:
        t: the statistic.
        freedom: degrees of it.
    """
    from scipy.special import stdtr

    return float(2 * stdtr(freedom, -abs(t)))


def holm(ps: Sequence[float | None]) -> list[float | None]:
    """p-values adjusted for their number, such that one false finding among all has the probability of one test's.

    The step-down method of Holm (A simple sequentially rejective multiple test procedure, Scand. J. Statistics 1979):
    the i-th smallest of m is multiplied by m - i + 1, is at least the adjusted one before it, and at most 1.

    Args:
        ps: of a family of m tests: here all methods against the reference within one table. None of a comparison that
            was not tested, which is not counted.

    Returns:
        In the same order.
    """
    tested = sorted((p, at) for at, p in enumerate(ps) if p is not None)
    adjusted: list[float | None] = [None] * len(ps)
    most = 0.0
    for done, (p, at) in enumerate(tested):
        most = max(most, min(1.0, (len(tested) - done) * p))
        adjusted[at] = most
    return adjusted


def verdict(interval: Interval, adjusted: float | None = None) -> Verdict:
    """What may be said of a difference.

    `above` or `below` only where the whole interval is on that side of 0 and, of a family of tests, its adjusted p is
    at most 0.05 as well.

    Args:
        interval: of the difference.
        adjusted: its p after `holm`; None where it is the only one.
    """
    if interval.low is None or interval.high is None:
        if interval.why == ONE_SEED:
            return ONE_SEED
        return "not distinguishable" if interval.mean == 0 else NO_SPREAD
    if adjusted is None or adjusted <= LEVEL:
        if interval.low > 0:
            return "above"
        if interval.high < 0:
            return "below"
    return "not distinguishable"


def _is_zero(error: float, values: np.ndarray) -> bool:
    """Whether a spread is none but for rounding."""
    return error <= 1e-14 * float(np.abs(values).max())
