"""What the cards of several papers have: differences and intervals, accuracy over rounds, and mixing weights."""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from common import spread, table
from runs import Case, Result
from splits import own_weights, relations

ROUNDS_SHOWN = (5, 10, 20, 30, 40, 60, 100, 200, 400, 600)
PHASES = ("before", "after")


class Interval(NamedTuple):
    """A mean, and the ends of the interval that holds the true one with a stated confidence."""

    mean: float
    low: float
    high: float

    def holds(self, value: float) -> bool:
        """Whether a value is in it, the ends included."""
        return self.low <= value <= self.high

    def __str__(self) -> str:
        """`+1.58 [+0.70, +2.46]`, and the mean alone where there is no interval."""
        if math.isinf(self.high):
            return f"{self.mean:+.2f}"
        return f"{self.mean:+.2f} [{self.low:+.2f}, {self.high:+.2f}]"


def paired(values: Sequence[float], bases: Sequence[float], confidence: float = 0.95) -> Interval:
    """By how much values are above those that they are paired with, with Student's interval of the mean difference.

    Args:
        values: n of them, such as one for each seed.
        bases: their partners, in the same order.
        confidence: of the interval, in (0, 1).

    Returns:
        The mean difference and mean ± t s / sqrt(n), where s is the differences' standard deviation and t the quantile
        of Student's distribution with n - 1 degrees of freedom. One pair says nothing of the spread: the interval is
        endless.

    Raises:
        ValueError: there is no pair, or somebody has no partner.
    """
    from scipy.stats import t as student  # it comes with scikit-learn

    differences = [value - base for value, base in zip(values, bases, strict=True)]
    if not differences:
        raise ValueError("there is no pair to compare")
    mean, count = statistics.fmean(differences), len(differences)
    if count == 1:
        return Interval(mean, -math.inf, math.inf)
    half = float(student.ppf((1 + confidence) / 2, count - 1)) * statistics.stdev(differences) / math.sqrt(count)
    return Interval(mean, mean - half, mean + half)


def each(
    results: Mapping[Case, Result], methods: Iterable[str], split: str
) -> Iterator[tuple[str, str, dict[int, Result]]]:
    """Method, phase, and the method's runs on a split by seed; methods without a run are left out.

    Args:
        results: all runs.
        methods: in the order of the table.
        split: which.
    """
    for method in methods:
        runs = {case.seed: result for case, result in results.items() if (case.split, case.method) == (split, method)}
        if runs:
            yield from ((method, phase, runs) for phase in PHASES)


def differences(
    results: Mapping[Case, Result], methods: Sequence[str], split: str, last: int, bases: Sequence[tuple[str, str]]
) -> str:
    """Every model against some, seed by seed, over the last rounds.

    Args:
        results: all runs.
        methods: in the order of the table.
        split: which.
        last: so many of the last training rounds.
        bases: method and phase of those to compare with; a seed that one of them lacks is left out.
    """
    means = {
        (method, phase): {seed: run.mean(phase, last) for seed, run in runs.items()}
        for method, phase, runs in each(results, methods, split)
    }
    rows = []
    for (method, phase), found in means.items():
        gains = [
            [mean - base[s] for s, mean in found.items() if s in base] for base in (means.get(b, {}) for b in bases)
        ]
        rows.append([f"{method}, {phase}", *(spread(gain) if gain else "-" for gain in gains)])
    return table(("model", *(f"minus {name}, {phase}" for name, phase in bases)), rows)


def over_rounds(results: Mapping[Case, Result], methods: Sequence[str], split: str, rounds: int) -> str:
    """Accuracy on the way, mean over clients and seeds.

    Args:
        results: all runs.
        methods: in the order of the table.
        split: which.
        rounds: how many were trained.
    """
    at = sorted({number for number in ROUNDS_SHOWN if number < rounds} | {rounds})
    rows = []
    for method, phase, runs in each(results, methods, split):
        means = (np.mean([run.at(number, phase) for run in runs.values()]) for number in at)
        rows.append([f"{method}, {phase}", *(f"{mean:.1f}" for mean in means)])
    return table(("in training round", *map(str, at)), rows)


def mixing(results: Mapping[Case, Result]) -> dict[tuple[str, str], list[Result]]:
    """The runs that left mixing weights, by split and method."""
    found: dict[tuple[str, str], list[Result]] = defaultdict(list)
    for case, result in results.items():
        if result.mixes:
            found[case.split, case.method].append(result)
    return found


def preferences(results: Mapping[Case, Result], last: int, shared: Sequence[int]) -> str:
    """Mean weight by kind of peer, over the first and the last rounds.

    Args:
        results: all runs.
        last: how many rounds.
        shared: numbers of classes that a client and its peer share, a column for each.
    """
    rows, names = [], ("self", *map(str, shared))
    for (split, method), runs in mixing(results).items():
        for when, early in _moments(last):
            kinds = [relations(run.path, last, early) for run in runs]
            cells = [[float(np.mean(kind[name])) for kind in kinds if name in kind] for name in names]
            rows.append([f"{method}, {split}, {when}", *(spread(cell, 3) if cell else "-" for cell in cells)])
    return table(("weight of a peer sharing", *names[:1], *(f"{n} classes" for n in names[1:])), rows)


def selves(results: Mapping[Case, Result], last: int) -> str:
    """Mean self weight of each layer group in the last rounds, over clients and seeds."""
    rows = {f"{method}, {split}": _own(runs, last) for (split, method), runs in mixing(results).items()}
    return _by_group(f"self weight, last {last}", rows)


def selves_then_and_now(results: Mapping[Case, Result], last: int) -> str:
    """Mean self weight of each layer group in the first and in the last rounds, over clients and seeds."""
    rows = {
        f"{method}, {split}, {when}": _own(runs, last, early)
        for (split, method), runs in mixing(results).items()
        for when, early in _moments(last)
    }
    return _by_group("self weight", rows)


def _moments(last: int) -> tuple[tuple[str, bool], ...]:
    return (f"first {last}", True), (f"last {last}", False)


def _own(runs: Sequence[Result], last: int, early: bool = False) -> dict[str, float]:
    found = [own_weights(run.path, last, early) for run in runs]
    return {group: float(np.mean([own[group] for own in found])) for group in found[0]}


def _by_group(head: str, rows: Mapping[str, Mapping[str, float]]) -> str:
    groups = list(dict.fromkeys(group for row in rows.values() for group in row))
    cells = [[name, *(f"{row[group]:.2f}" if group in row else "-" for group in groups)] for name, row in rows.items()]
    return table((head, *groups), cells)
