"""What is known when a trial of a search is proposed: what was told of those before it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fedham_flwr.core.search_space import Space
from fedham_flwr.study.points import Values
from fedham_flwr.study.runs import State


@dataclass(frozen=True)
class Told:
    """What became of a trial.

    Attributes:
        number: of the trial, from 0.
        values: setting -> the value that it tried.
        value: the metric at its end, finite; None of one that is not complete.
        state: complete, pruned or failed.
        steps: (round, metric), as in `runs.RunResult`.
    """

    number: int
    values: Values
    value: float | None
    state: State
    steps: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True)
class Asked:
    """What a proposal depends on, and nothing else.

    Attributes:
        space: what is searched.
        trials: how many there will be.
        seed: of the search.
        higher: whether a larger metric is better.
        told: the trials of earlier batches, by number.
        batch: the values of this batch's trials so far.
    """

    space: Space
    trials: int
    seed: int
    higher: bool
    told: Sequence[Told]
    batch: Sequence[Values]

    @property
    def number(self) -> int:
        """Of the trial that wants values."""
        return len(self.told) + len(self.batch)
