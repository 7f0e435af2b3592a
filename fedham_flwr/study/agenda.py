"""What of a study is still to be done, and in which order."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field

from fedham_flwr.study.planned import Plan
from fedham_flwr.study.runs import ROLES, RunResult, RunSpec
from fedham_flwr.study.search import Steps
from fedham_flwr.study.store import Store
from fedham_flwr.study.times import Chain, Kind, Times, kind_of
from fedham_flwr.study.tuning import Tuning, Want

Pair = tuple[str, str]
"""Labels of a method and a task."""


@dataclass
class Agenda:
    """All runs of a study: those that are done, and those that are wanted.

    Attributes:
        plan: the study's.
        store: of its results.
        results: key -> what has come of a run.
        tunings: pair -> its search.
        reports: pair -> its report runs, once its values are chosen.
        undecided: pairs of which no trial came to its end, which have no report runs.
        times: of the runs that are done.
    """

    plan: Plan
    store: Store
    results: dict[str, RunResult] = field(default_factory=dict)
    tunings: dict[Pair, Tuning] = field(default_factory=dict)
    reports: dict[Pair, tuple[RunSpec, ...]] = field(default_factory=dict)
    undecided: list[Pair] = field(default_factory=list)
    times: Times = field(default_factory=Times)

    def __post_init__(self) -> None:
        self.times.rounds = {(*pair, role): self.plan.rounds(*pair, role) for pair in self.pairs() for role in ROLES}
        for pair in self.pairs():
            if self.plan.tune and self.plan.space(*pair):
                tuning = self.tunings[pair] = Tuning(self.plan, self.plan.tune, *pair)
                if pair in self.plan.taken:
                    tuning.take_over(self.plan.taken[pair], "--tuning")
                    self._decide(pair, tuning)
            else:
                self._report(pair, {})
        if self.plan.taken:
            self.store.write_tuning([tuning.entry() for tuning in self.tunings.values()])

    def pairs(self) -> Iterator[Pair]:
        """Every method on every task, in the plan's order."""
        return ((method.label, task.label) for task in self.plan.tasks for method in self.plan.methods)

    def advance(self) -> list[Pair]:
        """Go as far as the results allow, those that the store has from earlier included.

        Returns:
            The pairs that have been decided by that.
        """
        decided: list[Pair] = []
        changed = False
        for pair, tuning in self.tunings.items():
            if tuning.over:
                continue
            changed = tuning.advance(self.results) or changed
            while self._look_up(tuning.wants):
                changed = tuning.advance(self.results) or changed
            if tuning.over:
                decided.append(pair)
                self._decide(pair, tuning)
        if changed:
            self.store.write_tuning([tuning.entry() for tuning in self.tunings.values()])
        return decided

    def ready(self, running: Collection[RunSpec]) -> list[RunSpec]:
        """The runs that can begin now, what is best begun first in front.

        Args:
            running: those that are going on.
        """
        taken = {spec.key for spec in running}
        found: dict[str, tuple[float, RunSpec]] = {}
        for pair, tuning in self.tunings.items():
            for want in tuning.wants.values():
                if self._missing(want):
                    found.setdefault(want.spec.key, (self._weight(pair, tuning), want.spec))
        for specs in self.reports.values():
            for spec in specs:
                if spec.key not in self.results:
                    found.setdefault(spec.key, (self.times.of(kind_of(spec)) or 1.0, spec))
        waiting = [each for key, each in found.items() if key not in taken]
        # One of each kind before any other: the order of the rest, and the time that is left, are then known.
        tried = {kind_of(spec) for spec in running} | self.times.kinds
        first = {kind: spec.key for _, spec in reversed(waiting) if (kind := kind_of(spec)) not in tried}
        waiting.sort(key=lambda each: (first.get(kind_of(each[1])) != each[1].key, -each[0]))
        return [spec for _, spec in waiting]

    def stops(self, key: str, steps: Steps) -> bool:
        """Whether nobody wants a run to go on.

        Args:
            key: of a run that is going on.
            steps: so far.
        """
        if any(spec.key == key for specs in self.reports.values() for spec in specs):
            return False
        judges = [tuning.stops(key, steps) for tuning in self.tunings.values() if key in tuning.wants]
        return bool(judges) and all(judges)

    def done(self, spec: RunSpec, result: RunResult) -> None:
        """Take note of a run that is done.

        Args:
            spec: the run.
            result: what has come of it.
        """
        self.results[spec.key] = result
        self._claim(spec.key)
        if result.state != "failed":
            self.times.add(kind_of(spec), result.seconds)

    def chains(self) -> list[Chain]:
        """What is left to do."""
        found, seeds = [], len(self.plan.seeds)
        for pair, tuning in self.tunings.items():
            if tuning.over:
                continue
            runs = tuning.left * len(tuning.tune.seeds)
            counts: dict[Kind, int] = {(*pair, "tuning"): runs, (*pair, "report"): seeds}
            found.append(Chain(counts, max(tuning.tune.together, 1)))
        missing = [spec for specs in self.reports.values() for spec in specs if spec.key not in self.results]
        alone = {spec.key: kind_of(spec) for spec in missing}
        return found + [Chain({kind: 1}, 1) for kind in alone.values()]

    def total(self) -> int:
        """How many runs there will be in all, at most."""
        left = Counter[Kind]()
        for chain in self.chains():
            left.update(chain.counts)
        return len(self.results) + left.total()

    def _look_up(self, wants: dict[str, Want]) -> bool:
        """Read what the store has of runs that are wanted; whether it has anything new."""
        found = False
        for key, want in wants.items():
            if key not in self.results and (result := self.store.read_result(key)) is not None:
                self.done(want.spec, result)
                found = True
        return found

    def _decide(self, pair: Pair, tuning: Tuning) -> None:
        if (chosen := tuning.chosen) is None:
            self.undecided.append(pair)
        else:
            self._report(pair, dict(chosen))

    def _report(self, pair: Pair, chosen: dict[str, bool | int | float | str]) -> None:
        self.reports[pair] = tuple(self.plan.report_spec(*pair, seed, chosen) for seed in self.plan.seeds)
        self._look_up({spec.key: Want(spec) for spec in self.reports[pair]})
        for spec in self.reports[pair]:
            self._claim(spec.key)

    def _claim(self, key: str) -> None:
        """Have tables find a run under every label that it is a report run of."""
        if key in self.results:
            for specs in self.reports.values():
                for spec in specs:
                    if spec.key == key:
                        self.store.claim(spec)

    def _missing(self, want: Want) -> bool:
        there = self.results.get(want.spec.key)
        return there is None or (want.whole and there.state == "pruned")

    def _weight(self, pair: Pair, tuning: Tuning) -> float:
        """Seconds of all that has to follow one another from here on: what is longest is begun first."""
        each, last = (self.times.of((*pair, role)) or 1.0 for role in ROLES)
        return -(-tuning.left // max(tuning.tune.together, 1)) * each + last
