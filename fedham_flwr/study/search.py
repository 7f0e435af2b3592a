"""The search of one method's settings: trials that are asked for, told, pruned, and the best of them."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field

from fedham_flwr.core.errors import UserError
from fedham_flwr.core.search_space import Space
from fedham_flwr.study.points import Values, size
from fedham_flwr.study.runs import State
from fedham_flwr.study.samplers import propose, sampler_used
from fedham_flwr.study.told import Asked, Told

Steps = Sequence[tuple[int, float]]
PRUNERS = ("median", "none")
COMPLETE_FIRST = 4
"""Nothing is pruned before so many trials are complete: the median of fewer says little."""
SPARED = 1 / 3
"""Of a trial's rounds, the first part in which it is not pruned: a small learning rate only begins slowly."""


@dataclass(frozen=True)
class Trial:
    """A trial that is to be run.

    Attributes:
        number: from 0, which has the values that the space starts from.
        values: setting -> value.
    """

    number: int
    values: Values


@dataclass
class Search:
    """Trials of one method on one task, in batches.

    What is proposed is a function of the arguments and of what was told of the batches before, in the order of numbers:
    a search that is asked and told anew what is stored goes on where it was.

    Attributes:
        space: what is searched; without any dimension there is one trial.
        trials: how many, at least 1; fewer if there are fewer different points.
        seed: of what is drawn.
        sampler: auto, tpe, sobol, random or grid; then the one that is used.
        pruner: median or none.
        higher: whether a larger metric is better; asked for from the first trial told on.
        together: trials of a batch, at least 1.
        told: what became of the trials of the batches that are over, by number.

    Raises:
        UserError: the sampler needs what is not installed; there is no such sampler or pruner.
    """

    space: Space
    trials: int
    seed: int
    sampler: str = "auto"
    pruner: str = "median"
    higher: bool = True
    together: int = 1
    told: list[Told] = field(default_factory=list, init=False)
    _batch: dict[int, Trial] = field(default_factory=dict, init=False)
    _heard: dict[int, Told] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        self.sampler = sampler_used(self.sampler)
        if self.pruner not in PRUNERS:
            raise UserError(f'pruner="{self.pruner}" is none: wanted {" or ".join(PRUNERS)}')
        if min(self.trials, self.together) < 1:
            raise ValueError(f"wanted at least one trial, and one at once, not {self.trials} and {self.together}")

    @property
    def length(self) -> int:
        """How many trials there will be."""
        return int(min(self.trials, size(self.space)))

    @property
    def note(self) -> str:
        """What is to be said where there are fewer trials than were asked for; else empty."""
        if self.length == self.trials:
            return ""
        points = f"{self.length} different point{'s' if self.length > 1 else ''}"
        return f"the space of {', '.join(self.space) or 'no setting'} has {points}, fewer than {self.trials} trials"

    @property
    def waiting(self) -> tuple[int, ...]:
        """Numbers of the trials that were asked for and not told."""
        return tuple(number for number in self._batch if number not in self._heard)

    def ask(self) -> list[Trial]:
        """The trials of the next batch; none if the search is over.

        Raises:
            RuntimeError: some of the batch before are not told.
        """
        if self.waiting:
            raise RuntimeError(f"the trials {self.waiting} were asked for and are not told")
        batch: list[Trial] = []
        while len(batch) < self.together and len(self.told) + len(batch) < self.length:
            known = Asked(self.space, self.trials, self.seed, self.higher, self.told, [trial.values for trial in batch])
            values = propose(known, sampler_used(self.sampler))
            if values is None:
                break
            batch.append(Trial(known.number, values))
        self._batch = {trial.number: trial for trial in batch}
        return batch

    def tell(self, number: int, value: float | None, state: State, steps: Steps = ()) -> None:
        """What became of a trial; a batch of which all are told is over.

        Args:
            number: of a trial that was asked for and not told.
            value: the metric at its end; one that is complete with none, or with one not finite, has failed.
            state: complete, pruned or failed.
            steps: (round, metric) of each evaluation.
        """
        if number not in self.waiting:
            raise ValueError(f"the trial {number} was not asked for, or is told already")
        good = state == "complete" and value is not None and math.isfinite(value)
        settled: State = "failed" if state == "complete" and not good else state
        self._heard[number] = Told(
            number,
            self._batch[number].values,
            value if good else None,
            settled,
            tuple((at, metric) for at, metric in steps),
        )
        if not self.waiting:
            self.told += [self._heard[one] for one in sorted(self._heard)]
            self._batch, self._heard = {}, {}

    def should_prune(self, number: int, steps: Steps) -> bool:
        """Whether a trial promises too little to go on: by the batches that are over, never by its own.

        Args:
            number: of the trial; the first one, which has the values that the space starts from, is never pruned.
            steps: (round, metric) of its evaluations so far.
        """
        complete = [told for told in self.told if told.state == "complete"]
        if self.pruner == "none" or number == 0 or not steps or len(complete) < COMPLETE_FIRST:
            return False
        last = max((at for told in complete for at, _ in told.steps), default=0)
        return steps[-1][0] >= SPARED * last and is_below_median(steps, [told.steps for told in complete], self.higher)

    def best(self) -> int | None:
        """The number of the complete trial with the best metric, of equal ones the first; None if there is none."""
        values = {told.number: told.value for told in self.told if told.value is not None}
        if not values:
            return None
        return max(values, key=lambda number: values[number] if self.higher else -values[number])


def is_below_median(steps: Steps, others: Sequence[Steps], higher: bool) -> bool:
    """Whether the best metric of a trial so far is worse than the median of others in the same round.

    Optuna's MedianPruner decides so. A trial that has no number is worse than any; one without others is not.

    Args:
        steps: (round, metric) of the trial so far, at least one.
        others: those of trials that are complete.
        higher: whether a larger metric is better.
    """
    numbers = [value for _, value in steps if not math.isnan(value)]
    if not numbers:
        return True
    there = [dict(each).get(steps[-1][0], math.nan) for each in others]
    there = [value for value in there if not math.isnan(value)]
    if not there:
        return False
    middle = statistics.median(there)
    return max(numbers) < middle if higher else min(numbers) > middle
