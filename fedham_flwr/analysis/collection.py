"""Runs that are compared: those of a study, or any run directories."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from fedham_flwr import registry
from fedham_flwr.analysis import loose, stored
from fedham_flwr.analysis.facts import RunFacts, Split
from fedham_flwr.analysis.opened import Fault
from fedham_flwr.core.errors import UserError
from fedham_flwr.training.metrics import ACCURACY, METRICS, Metric

__all__ = ["Collection", "Fault", "RunFacts", "of_runs", "of_study", "open_collection"]

SEEN = (
    "Each seed has a partition and splits of its own (data-seed=-1): what tuning validated on can be a test sample of "
    "another seed."
)
"""Of a study that tuned without fixing the data."""


@dataclass(frozen=True)
class Collection:
    """Runs that are compared.

    Attributes:
        title: of the comparison: the study's name.
        runs: that came to their end, in the order of methods, tasks and seeds.
        methods: labels, in the order of the tables.
        tasks: labels, in the order of the tables.
        metrics: of each task the one that its tables are of.
        split: whose scores are compared: test, or validation where no test split was scored.
        floors: labels of the methods that every comparison has.
        reference: label of the method that all others are compared with; empty of a single method.
        failures: runs that are not among `runs`.
        warnings: what a reader must know before comparing, a sentence each.
        tuning: of each method and task what was tried, as in `tuning.json`; empty without tuning.
        plan: of a study, `plan.json`; empty otherwise.
    """

    title: str
    runs: tuple[RunFacts, ...]
    methods: tuple[str, ...]
    tasks: tuple[str, ...]
    metrics: Mapping[str, Metric]
    split: Split = "test"
    floors: tuple[str, ...] = ()
    reference: str = ""
    failures: tuple[Fault, ...] = ()
    warnings: tuple[str, ...] = ()
    tuning: tuple[Mapping[str, Any], ...] = ()
    plan: Mapping[str, Any] = field(default_factory=dict)

    @property
    def metric(self) -> Metric:
        """That of the first task."""
        return self.metrics[self.tasks[0]] if self.tasks else ACCURACY

    def of(self, method: str, task: str) -> dict[int, RunFacts]:
        """The runs of a method on a task, by seed.

        Args:
            method: its label.
            task: its label.
        """
        return {run.seed: run for run in self.runs if (run.method, run.task) == (method, task)}

    def seeds(self, task: str) -> list[int]:
        """The seeds that each method should have on a task: those of the plan, or of any run.

        Args:
            task: its label.
        """
        if planned := self.plan.get("seeds"):
            return sorted(planned)
        failed = {fault.seed for fault in self.failures if (fault.role, fault.task) == ("report", task)}
        return sorted(failed | {run.seed for run in self.runs if run.task == task})

    def values(self, method: str, task: str, phase: str = "") -> dict[int, float]:
        """Seed -> mean over the clients in the closing evaluation; of seeds in which it was measured.

        Args:
            method: its label.
            task: its label.
            phase: before or after; by default that of the model that the method stands for.
        """
        found = {seed: run.value(phase, self.split) for seed, run in self.of(method, task).items()}
        return {seed: value for seed, value in found.items() if value is not None}


def open_collection(folders: Sequence[Path]) -> Collection:
    """What is in some folders: one study, or runs that no study made.

    Args:
        folders: that of a study alone; or of runs, or folders that hold some.

    Raises:
        UserError: there is neither.
    """
    studies = [folder for folder in folders if (folder / "plan.json").is_file()]
    if studies and len(folders) > 1:
        raise UserError(f"{studies[0]} is the folder of a study, which stands alone: wanted it without other folders")
    return of_study(folders[0]) if studies else of_runs(folders)


def of_study(folder: Path) -> Collection:
    """The runs of a study's folder, finished or not.

    Args:
        folder: with `plan.json`, `tuning.json` if anything was tuned, and `runs/`.

    Raises:
        UserError: it is not the folder of a study.
    """
    folder = Path(folder)
    plan = stored.read_plan(folder)
    tuning = stored.read_json(folder / "tuning.json", list) if (folder / "tuning.json").exists() else []
    try:
        found = stored.runs_of(folder, plan, tuning)
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"plan.json or tuning.json in {folder} is damaged: `fedham study` writes both anew") from error
    methods, tasks = ([each["label"] for each in plan[name]] for name in ("methods", "tasks"))
    made = _collected(str(plan["name"]), found, methods, tasks)
    warnings = made.warnings
    if tuning and any(run.data_seed < 0 for run in made.runs):
        warnings = (*warnings, SEEN)
    reference = str(plan["reference"]) if len(methods) > 1 else ""
    return replace(
        made, floors=tuple(plan["floors"]), reference=reference, warnings=warnings, tuning=tuple(tuning), plan=plan
    )


def of_runs(folders: Sequence[Path]) -> Collection:
    """Run directories that no study made.

    Methods are labelled by their strategy, and by the settings in which runs of one strategy differ; tasks by what
    decides the data: data set, partition, number of clients.

    Args:
        folders: of runs, or folders that hold some.

    Raises:
        UserError: there is no run.
    """
    found = loose.runs_of([Path(folder) for folder in folders])
    kept, twice = _latest(found)
    strategies = {run.method: run.strategy for run in kept if isinstance(run, RunFacts)}
    known_floors = {name: at for at, name in enumerate(registry.METHODS) if registry.method(name).floor}
    floors = [label for label in strategies if strategies[label] in known_floors]
    floors.sort(key=lambda label: known_floors[strategies[label]])
    methods = [*floors, *(label for label in dict.fromkeys(run.method for run in kept) if label not in floors)]
    tasks = list(dict.fromkeys(run.task for run in kept))
    title = f"{methods[0]} on {tasks[0]}" if len(methods) == 1 else f"{len(methods)} methods on {', '.join(tasks)}"
    made = _collected(title, kept, methods, tasks)
    reference = methods[0] if len(methods) > 1 else ""
    return replace(made, floors=tuple(floors), reference=reference, warnings=(*twice, *made.warnings))


def _latest(found: Sequence[RunFacts | Fault]) -> tuple[list[RunFacts | Fault], list[str]]:
    """The runs, of those with the same labels and seed the last one alone; and what was left out, in words."""
    kept: dict[tuple[str, str, int, bool], RunFacts | Fault] = {}
    twice = []
    for run in found:
        key = run.method, run.task, run.seed, isinstance(run, Fault)
        if key in kept and isinstance(run, RunFacts):
            older, run = sorted([kept[key], run], key=_started)  # noqa: PLW2901
            place = "/".join(older.directory.parts[-2:]) if older.directory else "the other"
            twice.append(
                f"{run.method}, {run.task}, seed {run.seed} was run more than once with the same settings: the last "
                f"run counts, and not {place}."
            )
        kept[key] = run
    return list(kept.values()), twice


def _started(run: RunFacts | Fault) -> tuple[str, str]:
    environment = run.environment if isinstance(run, RunFacts) else {}
    return str(environment.get("started", "")), str(run.directory)


def _collected(
    title: str, found: Sequence[RunFacts | Fault], methods: Sequence[str], tasks: Sequence[str]
) -> Collection:
    """A collection without what only its maker knows: floors, reference, tuning."""
    ended = [run for run in found if isinstance(run, RunFacts)]
    metrics = {task: _metric([run for run in ended if run.task == task]) for task in tasks}
    split: Split = "test" if not ended or any(run.value(split="test") is not None for run in ended) else "validation"
    faults = [run for run in found if isinstance(run, Fault)]
    runs = []
    for run in ended:
        if why := _unlike(run, metrics[run.task], split):
            faults.append(Fault(run.method, run.task, run.seed, "failed", why, key=run.key, directory=run.directory))
        else:
            runs.append(run)
    runs.sort(key=lambda run: (methods.index(run.method), tasks.index(run.task), run.seed))
    return Collection(
        title, tuple(runs), tuple(methods), tuple(tasks), metrics, split,
        failures=tuple(faults), warnings=(*_warnings(runs), *_unscored(runs, split)),
    )  # fmt: skip


def _unlike(run: RunFacts, metric: Metric, split: Split) -> str:
    """Why a run cannot stand in a table with the others; empty if it can."""
    if run.metric != metric.name:
        return f"it is judged by {run.metric}, and the others of its task by {metric.name}"
    if run.value(split=split) is None:
        lack = "no finite" if run.entry(split=split) else "no"
        return f"its closing evaluation has {lack} {split} {metric.name}"
    return ""


def _metric(runs: Sequence[RunFacts]) -> Metric:
    """The metric of a task: that of its first run. Of a user's own the direction is told by who the worst tenth are."""
    if not runs:
        return ACCURACY
    name = runs[0].metric
    if name in METRICS:
        return METRICS[name]
    entries = [entry for run in runs for entry in run.summary["final"] if entry["metric"] == name]
    lower = any(entry["worst-decile"] > entry["mean"] for entry in entries if entry["mean"] is not None)
    return Metric(name, higher=not lower)


def _warnings(runs: Sequence[RunFacts]) -> Iterator[str]:
    versions = {str(run.environment.get("fedham-flwr", "unknown")) for run in runs}
    commits = {str(run.environment["commit"]) for run in runs if "commit" in run.environment}
    if len(versions) > 1:
        yield f"The runs are of several versions of this package: {', '.join(sorted(versions))}."
    if len(commits) > 1:
        yield f"The runs are of several commits: {', '.join(sorted(commits))}."
    for run in runs:
        yield from (f"{run.method}, {run.task}, seed {run.seed}: {said}." for said in run.summary.get("warnings", ()))
    if dirty := [commit for commit in sorted(commits) if commit.endswith("-dirty")]:
        yield f"Files differed from the commit that is named: {', '.join(dirty)}."


def _unscored(runs: Sequence[RunFacts], split: Split) -> Iterator[str]:
    """That clients are missing in the mean of a run, which is then one over others than in the other runs."""
    fixed = all(run.data_seed >= 0 for run in runs)
    counts = [(run, (run.task, 0 if fixed else run.seed), (run.entry(split=split) or {})["clients"]) for run in runs]
    for run, group, count in counts:
        if count < (most := max(other for _, each, other in counts if each == group)):
            yield (
                f"{run.method}, {run.task}, seed {run.seed}: {count} of {most} clients have a {split} {run.metric}: "
                "its mean is over these alone, and differences are over the clients that both have."
            )
