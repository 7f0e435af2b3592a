"""The tuning of one method on one task: which runs it waits for, which of them end early, and what is chosen.

What becomes of a trial is a function of the course of its runs, and of the batches of trials before. So it is the same
however many runs go on side by side, whoever else wants the same run, and how often the study is interrupted: what was
done before is looked at anew, in the same order, until something is missing.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from fedham_flwr.core.errors import UserError
from fedham_flwr.settings import Value
from fedham_flwr.study.planned import Plan, Tune
from fedham_flwr.study.runs import RunResult, RunSpec, State
from fedham_flwr.study.search import Search, Steps, Trial


class Want(NamedTuple):
    """A run that somebody waits for.

    Attributes:
        spec: the run.
        whole: it was ended early for others, and is now wanted to its end.
    """

    spec: RunSpec
    whole: bool = False


class Settled(NamedTuple):
    """What has become of a trial."""

    state: State
    value: float | None
    steps: tuple[tuple[int, float], ...]
    error: str = ""


@dataclass
class _Open:
    """A trial of the batch that is going on.

    Attributes:
        trial: its number and values.
        specs: a run for each tuning seed, of which the first decides whether it goes on.
        judged: so many steps of the first run have been looked at, and none has ended it.
        settled: what has become of it.
    """

    trial: Trial
    specs: tuple[RunSpec, ...]
    judged: int = 0
    settled: Settled | None = None


@dataclass
class Tuning:
    """The search of one method's settings on one task.

    Attributes:
        plan: the study's.
        tune: its part about tuning.
        method: a label.
        task: a label.
        trials: those that are over, as `tuning.json` has them.
        wants: key -> the run that is waited for now.
        over: the search has come to its end.
    """

    plan: Plan
    tune: Tune
    method: str
    task: str
    trials: list[dict[str, Any]] = field(default_factory=list)
    wants: dict[str, Want] = field(default_factory=dict)
    over: bool = False
    _batch: list[_Open] = field(default_factory=list)

    def __post_init__(self) -> None:
        tune = self.tune
        space = self.plan.space(self.method, self.task)
        self._search = Search(space, tune.trials, tune.seeds[0], tune.sampler, tune.pruner, together=tune.together)

    @property
    def chosen(self) -> Mapping[str, Value] | None:
        """The values of the best trial so far; None if none has come to its end."""
        best = self._search.best()
        return None if best is None else dict(self.trials[best]["values"])

    @property
    def left(self) -> int:
        """How many trials are still to be decided."""
        return 0 if self.over else self._search.length - len(self.trials)

    def advance(self, results: Mapping[str, RunResult]) -> bool:
        """Go as far as the results allow; whether a batch has come to its end.

        Args:
            results: of the runs that are done, by key.
        """
        before = len(self.trials)
        while not self.over:
            if not self._batch:
                self._begin()
                continue
            self.wants = {}
            for one in self._batch:
                one.settled = one.settled or self._settle(one, results)
            if self.wants:
                break
            self._end(results)
        return len(self.trials) > before

    def take_over(self, entry: Mapping[str, Any], source: str) -> None:
        """Take the trials of a search that is over, which are proposed anew to see that they are this one's.

        Args:
            entry: of a `tuning.json`, as of `entry`.
            source: what it is from, for errors.

        Raises:
            UserError: they are those of another search.
        """
        try:
            while trials := self._search.ask():
                for trial in trials:
                    self._take(trial, entry["trials"][trial.number], bool(entry["higher"]), source)
        except (LookupError, TypeError, ValueError) as error:
            raise UserError(f"{source}: the search of {self.method} on {self.task} is damaged: {error!r}") from error
        self.over = True

    def _take(self, trial: Trial, told: Mapping[str, Any], higher: bool, source: str) -> None:
        if told["values"] != dict(trial.values):
            raise UserError(
                f"{source}: trial {trial.number} of {self.method} on {self.task} tried {told['values']}, and here it "
                f"would try {dict(trial.values)}: the search is another one, and has to be made anew"
            )
        steps = [(int(at), float(value)) for at, value in told["steps"]]
        self._search.higher = higher
        self._search.tell(trial.number, told["value"], told["state"], steps)
        self.trials.append({**told, "runs": []})

    def stops(self, key: str, steps: Steps) -> bool:
        """Whether, as far as this search goes, a run need not go on.

        Args:
            key: of a run that is going on.
            steps: so far.
        """
        mine = [one for one in self._batch if any(spec.key == key for spec in one.specs) and one.settled is None]
        return all(one.specs[0].key == key and self._cut(one, steps) is not None for one in mine)

    def entry(self) -> dict[str, Any]:
        """As `tuning.json` has it."""
        space = self.plan.space(self.method, self.task)
        return {
            "method": self.method,
            "task": self.task,
            "space": {key: dataclasses.asdict(dimension) for key, dimension in space.items()},
            "higher": self._search.higher,
            "trials": self.trials,
            "chosen": self._search.best() if self.over else None,
        }

    def _begin(self) -> None:
        trials = self._search.ask()
        self.over = not trials
        self.wants = {}
        for trial in trials:
            specs = [
                self.plan.tuning_spec(self.method, self.task, seed, trial.number, trial.values)
                for seed in self.tune.seeds
            ]
            self._batch.append(_Open(trial, tuple(specs)))

    def _end(self, results: Mapping[str, RunResult]) -> None:
        """Tell the search of the batch."""
        for one in self._batch:
            assert one.settled is not None
            done = [spec.key for spec in one.specs if spec.key in results]
            if directions := [results[key].higher for key in done if results[key].metric]:
                self._search.higher = directions[0]
            state, value, steps, error = one.settled
            self._search.tell(one.trial.number, value, state, steps)
            self.trials.append({
                "number": one.trial.number, "values": dict(one.trial.values), "value": value, "state": state,
                "error": error, "steps": [list(step) for step in steps],
                "runs": done[:1] if state == "pruned" else done,
            })  # fmt: skip
        self._batch = []

    def _settle(self, one: _Open, results: Mapping[str, RunResult]) -> Settled | None:
        """What has become of a trial; None if runs are missing, which are then wanted."""
        first = results.get(one.specs[0].key)
        if first is None:
            self._want(one.specs[0])
            return None
        steps = first.steps[:-1] if first.state == "complete" else first.steps
        if (at := self._cut(one, steps)) is not None:
            return Settled("pruned", None, first.steps[: at + 1])
        if first.state == "failed":
            return Settled("failed", None, first.steps, first.error)
        missing = [spec for spec in one.specs if results.get(spec.key, _PRUNED).state == "pruned"]
        for spec in missing:
            self._want(spec, whole=spec.key in results)
        if missing:
            return None
        values = [results[spec.key].value for spec in one.specs]
        errors = [results[spec.key].error for spec in one.specs if results[spec.key].state == "failed"]
        good = [value for value in values if value is not None and math.isfinite(value)]
        if errors or len(good) < len(values):
            return Settled("failed", None, first.steps, errors[0] if errors else "the metric is not a finite number")
        return Settled("complete", math.fsum(good) / len(good), first.steps)

    def _want(self, spec: RunSpec, whole: bool = False) -> None:
        self.wants[spec.key] = Want(spec, whole)

    def _cut(self, one: _Open, steps: Steps) -> int | None:
        """The place of the step at which a trial is ended; None if it is not."""
        while one.judged < len(steps):
            if self._search.should_prune(one.trial.number, steps[: one.judged + 1]):
                return one.judged
            one.judged += 1
        return None


_PRUNED = RunResult("pruned")
