"""What a study is going to do, before it does it: its methods, its runs, those that are there, and the time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import product
from typing import Any

from fedham_flwr.core.errors import UserError
from fedham_flwr.doctor.findings import duration
from fedham_flwr.settings import Value
from fedham_flwr.study.estimate import Paces, Pair, paces
from fedham_flwr.study.planned import Plan
from fedham_flwr.study.points import size
from fedham_flwr.study.runs import ROLES, RunSpec
from fedham_flwr.study.store import Store


@dataclass
class Count:
    """Runs of a method on a task.

    Attributes:
        tuning: at most, those that are there among them.
        report: those that are there among them.
        tuning_there: tuning runs that are done.
        report_there: report runs that are done.
        failed: report runs that are done and have failed.
        spec: one of those that are left; None if none is.
    """

    tuning: int
    report: int
    tuning_there: int = 0
    report_there: int = 0
    failed: int = 0
    spec: RunSpec | None = None

    @property
    def left(self) -> tuple[int, int]:
        """Tuning and report runs that are not done."""
        return self.tuning - self.tuning_there, self.report - self.report_there


@dataclass
class Outlook:
    """What a study has to do.

    Attributes:
        plan: of the study.
        counts: by the labels of method and task.
        pace: how fast the runs are, once it is known.
    """

    plan: Plan
    counts: dict[Pair, Count]
    pace: Paces = field(default_factory=Paces)

    @property
    def failed(self) -> int:
        """Report runs that have failed."""
        return sum(count.failed for count in self.counts.values())

    @property
    def complete(self) -> bool:
        """Whether every report run is there, and none has failed."""
        return not self.failed and all(count.report_there == count.report for count in self.counts.values())

    def measure(self, store: Store) -> None:
        """Find out how long the runs take that are left.

        Args:
            store: of the study.

        Raises:
            UserError: every run of some method on some task would fail; all of them at once.
        """
        wanted = {pair: count.spec for pair, count in self.counts.items() if count.spec is not None}
        self.pace = paces(store, wanted)
        if refused := self.pace.refused.sentences("runs of", len(self.counts)):
            raise UserError("; ".join(refused))

    def seconds(self, workers: int) -> float:
        """Until the study is done, at most: pruned trials take less.

        Args:
            workers: runs at a time.
        """
        whole, longest = 0.0, 0.0
        for pair, count in self.counts.items():
            if count.spec is None:
                continue
            pace = self.pace.known[pair]
            tuning, report = (pace.seconds(self.plan.rounds(*pair, role)) for role in ROLES)
            whole += count.left[0] * tuning + count.left[1] * report
            together = self.plan.tune.together if self.plan.tune else 1
            longest = max(longest, count.left[0] * tuning / together + report * (count.left[1] > 0))
        return max(whole / workers, longest)

    def lines(self, workers: int) -> Iterator[str]:
        """What is printed at the start, before anything is measured.

        Args:
            workers: runs at a time.
        """
        plan = self.plan
        words = f"{_number(len(plan.methods), 'method')}, {_number(len(plan.tasks), 'task')}"
        yield f"study    {plan.name}: {words}, {_number(len(plan.seeds), 'seed')}"
        yield from _column("methods", [self._method(method.label) for method in plan.methods])
        yield from _column("tasks", [f"{task.label}: {_number(task.clients, 'client')}" for task in plan.tasks])
        tuned = f"; of tuning: {_list(plan.tune.seeds)}" if plan.tune else ""
        yield f"seeds    {_list(plan.seeds)}{tuned}"
        tuning, report = (sum(getattr(c, name) for c in self.counts.values()) for name in ("tuning", "report"))
        there = sum(count.tuning_there + count.report_there for count in self.counts.values())
        tune = f"at most {tuning} to tune and " if tuning else ""
        lost = f", {self.failed} of which failed (--retry-failed does them again)" if self.failed else ""
        yield f"runs     {tune}{report} to report; {there} of them {'is' if there == 1 else 'are'} there{lost}"
        if plan.taken:
            yield f"tuned    {_number(len(plan.taken), 'search', 'es')} taken from --tuning"
        yield f"workers  {workers}"
        yield from (f"note     {warning}" for warning in plan.warnings)

    def time(self, workers: int) -> str:
        """The line about how long it takes, as far as that has been measured.

        Args:
            workers: runs at a time.
        """
        return f"time     {self._time(workers)}"

    def _method(self, label: str) -> str:
        method = self.plan.method(label)
        name = label if label == method.strategy else f"{label}, which is {method.strategy}"
        searched = {key: None for task in self.plan.tasks for key in self.plan.space(label, task.label)}
        what = f": {_number(len(searched), 'setting')} searched ({_list(searched)})" if searched else ""
        nothing = ": nothing searched" if self.plan.tune and not searched else ""
        return f"{name}{' (floor)' if method.floor else ''}{what}{nothing}"

    def _time(self, workers: int) -> str:
        if not any(count.spec for count in self.counts.values()):
            return "nothing is left to be run"
        if not self.pace.known:
            return "not known before the first runs are done"
        words = {
            "runs": "the runs that are there",
            "batches": "one round and a few batches, tried here",
            "others": "the mean of the others",
        }
        told = {by: sum(pace.by == by for pace in self.pace.known.values()) for by in words}
        unit = "method" if len(self.plan.tasks) == 1 else "pair"
        parts = [f"{_number(number, unit)} by {words[by]}" for by, number in told.items() if number]
        if len(parts) == 1:
            parts = [f"by {parts[0].partition(' by ')[2]}"]
        return f"about {duration(self.seconds(workers))}, an estimate: {', '.join(parts)}"


def look(plan: Plan, store: Store) -> Outlook:
    """What a study has to do, and what of it is done.

    Args:
        plan: of the study.
        store: its folder.
    """
    told = {(str(each.get("method")), str(each.get("task"))): each for each in store.read_tuning()}
    counts = {}
    for method, task in product(plan.methods, plan.tasks):
        pair = method.label, task.label
        counts[pair] = _count(plan, store, pair, told.get(pair, {}))
    return Outlook(plan, counts)


def _count(plan: Plan, store: Store, pair: Pair, told: Mapping[str, Any]) -> Count:
    space, tune = plan.space(*pair), plan.tune
    taken = plan.taken.get(pair)
    trials = int(min(tune.trials, size(space))) if tune and space and taken is None else 0
    count = Count(trials * len(tune.seeds) if tune else 0, len(plan.seeds))
    chosen: Mapping[str, Value] | None = {} if taken is None else taken["trials"][taken["chosen"]]["values"]
    if trials:
        try:
            chosen = _tuned(plan, store, pair, told, count)
        except (KeyError, TypeError, ValueError, UserError):  # of another version, or damaged: it is made anew
            chosen = None
    for seed in plan.seeds if chosen is not None else ():
        if (result := store.read_result(plan.report_spec(*pair, seed, chosen or {}).key)) is not None:
            count.report_there += 1
            count.failed += result.state != "complete"
    if tune and count.left[0]:
        count.spec = plan.tuning_spec(*pair, tune.seeds[0], 0, {})
    elif sum(count.left):
        count.spec = plan.report_spec(*pair, plan.seeds[0], {})
    return count


def _tuned(
    plan: Plan, store: Store, pair: Pair, told: Mapping[str, Any], count: Count
) -> Mapping[str, Value] | None:  # fmt: skip
    """Count the tuning runs that are there; the values that are chosen, None before that."""
    assert plan.tune is not None
    seeds, chosen = plan.tune.seeds, None
    wanted, tried = count.tuning // len(seeds), told.get("trials", [])
    for trial in tried[:wanted]:
        specs = [plan.tuning_spec(*pair, seed, trial["number"], trial["values"]) for seed in seeds]
        count.tuning_there += sum(store.read_result(spec.key) is not None for spec in specs)
        if trial["number"] == told["chosen"]:
            chosen = trial["values"]
    if chosen is not None and len(tried) >= wanted and count.tuning_there >= wanted:
        count.tuning = count.tuning_there  # trials that were ended early have fewer runs
    return dict(chosen) if chosen is not None else None


def _column(title: str, lines: list[str]) -> Iterator[str]:
    yield from (f"{title if not at else '':<9}{line}" for at, line in enumerate(lines))


def _number(count: int, what: str, plural: str = "s") -> str:
    return f"{count:,} {what}{plural * (count != 1)}"


def _list(words: object) -> str:
    return ", ".join(map(str, words)) if isinstance(words, list | tuple | dict) else str(words)
