"""How long the runs of a study take, from those that are done, and how much time is left."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from fedham_flwr.study.runs import RunSpec

Kind = tuple[str, str, str]
"""Method, task and role: runs of one kind take about as long."""


def kind_of(spec: RunSpec) -> Kind:
    """What a run is like."""
    return spec.method, spec.task, spec.role


class Chain(NamedTuple):
    """Runs that can only follow one another, in groups that go side by side.

    Attributes:
        counts: kind -> how many runs.
        side_by_side: how many of them at once, at most.
    """

    counts: Mapping[Kind, int]
    side_by_side: int


class Times:
    """Seconds of runs that are done.

    Attributes:
        rounds: kind -> how many rounds a run of it has.
    """

    def __init__(self) -> None:
        self.rounds: Mapping[Kind, int] = {}
        self._seconds: dict[Kind, list[float]] = defaultdict(list)

    def add(self, kind: Kind, seconds: float) -> None:
        """Take note of a run.

        Args:
            kind: of it.
            seconds: that it took.
        """
        self._seconds[kind].append(seconds)

    @property
    def kinds(self) -> set[Kind]:
        """Those of which a run is done."""
        return set(self._seconds)

    def of(self, kind: Kind) -> float | None:
        """Mean seconds of runs of a kind; None before the first run of any.

        Where none of them is done they are those of its method and task in the other role, or of other runs, by rounds.
        """
        for like in (lambda other: other == kind, lambda other: other[:2] == kind[:2], lambda _: True):
            found = [
                seconds * self.rounds.get(kind, 1) / self.rounds.get(other, 1)
                for other, some in self._seconds.items()
                if like(other)
                for seconds in some
            ]
            if found:
                return sum(found) / len(found)
        return None

    def total(self, counts: Mapping[Kind, int]) -> float | None:
        """Seconds of some runs, one after the other; None while nothing is known.

        Args:
            counts: kind -> how many.
        """
        if not self._seconds:
            return None
        return sum((self.of(kind) or 0.0) * count for kind, count in counts.items())

    def left(self, chains: Iterable[Chain], workers: int, spent: float = 0.0) -> float | None:
        """Seconds until all is done, about; None while nothing is known.

        Args:
            chains: what is left to do.
            workers: how many there are.
            spent: seconds that the runs now going on have already taken, together.
        """
        totals = [(self.total(chain.counts), chain.side_by_side) for chain in chains]
        known = [(total, width) for total, width in totals if total is not None]
        if len(known) < len(totals):
            return None
        together = max(0.0, sum(total for total, _ in known) - spent) / workers
        return max([together, *(total / min(width, workers) for total, width in known)])
