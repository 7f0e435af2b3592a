"""How even scores are over clients, and how many clients are better off than with another method.

The worst tenth and the standard deviation over clients, whose square is the fairness of q-FFL (Li et al., Fair resource
allocation in federated learning, ICLR 2020), are in every run's summary: `reporting/summary.py` defines them.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from typing import NamedTuple, TypeVar

import numpy as np

ROUNDING = 1e-12
"""Relative difference of two scores up to which they are the same."""
Unit = TypeVar("Unit", bound=Hashable)


class Duel(NamedTuple):
    """How many clients one method serves better than another does.

    Attributes:
        won: clients that are better off.
        tied: clients with the same score.
        lost: clients that are worse off.
    """

    won: int
    tied: int
    lost: int


def duel(ours: Mapping[Unit, float], theirs: Mapping[Unit, float], higher: bool = True) -> Duel:
    """Count for how many clients a method is better; no difference is too small to count but that of rounding.

    Args:
        ours: score of each client: its mean over the seeds, where it is the same client in all of them, and otherwise
            one of each (seed, client).
        theirs: of the other method; who is not in both is left out.
        higher: whether higher is better.
    """
    sign = 1 if higher else -1
    both = [unit for unit in ours if unit in theirs]
    # Means of several seeds that are equal can differ in their last bits.
    tied = [math.isclose(ours[unit], theirs[unit], rel_tol=ROUNDING) for unit in both]
    gains = [0.0 if t else sign * (ours[unit] - theirs[unit]) for unit, t in zip(both, tied, strict=True)]
    return Duel(sum(gain > 0 for gain in gains), sum(gain == 0 for gain in gains), sum(gain < 0 for gain in gains))


def sign_test(found: Duel) -> float:
    """Exact two-sided p of as uneven a count of won and lost if both were equally likely; ties do not count.

    It takes clients as independent, which those of one federation are not quite: they have trained together.

    Args:
        found: the counts.
    """
    count, fewer = found.won + found.lost, min(found.won, found.lost)
    return min(1.0, 2 * sum(math.comb(count, k) for k in range(fewer + 1)) / int(2**count))


def jain(values: Sequence[float]) -> float | None:
    """Jain's index (sum x)² / (n sum x²): 1 if all are equal, 1 / n if one has everything.

    Of Jain, Chiu and Hawe, A quantitative measure of fairness and discrimination, DEC-TR-301 (1984).

    Args:
        values: of n clients. None where one is below 0, or all are 0: then it means nothing.
    """
    given = np.asarray(values, dtype=np.float64)
    if not _shares(given):
        return None
    return float(given.sum() ** 2 / (len(given) * (given**2).sum()))


def gini(values: Sequence[float]) -> float | None:
    """Gini's coefficient sum_ij |x_i - x_j| / (2 n² mean): 0 if all are equal, 1 - 1 / n if one has everything.

    Of Gini, Variabilità e mutabilità (1912).

    Args:
        values: as of `jain`.
    """
    given = np.sort(np.asarray(values, dtype=np.float64))
    if not _shares(given):
        return None
    # In order, x_i is above i - 1 others and below n - i.
    place = 2 * np.arange(1, len(given) + 1) - len(given) - 1
    return float(place @ given / (len(given) * given.sum()))


def _shares(values: np.ndarray) -> bool:
    """Whether values can be shares of something."""
    return bool(len(values)) and bool((values >= 0).all()) and bool(values.sum() > 0)
