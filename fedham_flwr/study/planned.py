"""A study as it is planned: its methods, tasks and seeds, what is searched, and the settings of each of its runs.

Settings of a run: those of [settings], over them those of its task, over them those of its method, over them the values
that tuning tries or has chosen. `data-seed` is 0 where nothing else is given, so that partition and splits are the same
for all seeds, and what tuning looked at is never tested on.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from fedham_flwr import __version__, registry
from fedham_flwr.core.search_space import Space
from fedham_flwr.reporting.environment import environment_facts
from fedham_flwr.settings import Value, defaults
from fedham_flwr.study.keys import Contents, key_of
from fedham_flwr.study.runs import Role, RunSpec

FORMAT = 1
"""Of plan.json."""
DATA_SEED = 0
"""The data-seed of a study that names none."""
ALWAYS_IN_TUNING: Mapping[str, Value] = {"score-test": "never", "model-cards": 0, "cross-evaluation": False}
"""Settings of every tuning run, whatever the study says."""


@dataclass(frozen=True)
class StudyMethod:
    """A method of a study.

    Attributes:
        label: its name in the study, and in file names.
        strategy: the setting.
        settings: of [method.<label>], without `strategy`.
    """

    label: str
    strategy: str
    settings: Mapping[str, Value] = field(default_factory=dict)

    @property
    def floor(self) -> bool:
        """Whether it is one of those that every comparison should have."""
        return self.label in floors()


@dataclass(frozen=True)
class StudyTask:
    """A data set and its split.

    Attributes:
        label: its name in the study, and in file names.
        settings: of [task.<label>], without `clients`.
        clients: how many.
    """

    label: str
    settings: Mapping[str, Value]
    clients: int


@dataclass(frozen=True)
class Tune:
    """How methods are tuned; all of them with the same budget.

    Attributes:
        trials: of each method on each task, at most.
        seeds: of the runs of a trial, whose values are averaged; none is a seed of the study.
        sampler: what proposes values: tpe | sobol | random | grid | auto, which is tpe with optuna, else sobol.
        pruner: what ends trials early that promise nothing: median | none.
        together: trials of one method and task that are asked for at once.
        rounds: num-server-rounds of a trial; 0: as in the settings.
    """

    trials: int = 8
    seeds: tuple[int, ...] = (1000,)
    sampler: str = "auto"
    pruner: str = "median"
    together: int = 1
    rounds: int = 0


@dataclass(frozen=True)
class Plan:
    """A study as its file says it, checked.

    Attributes:
        name: of the study.
        methods: in the order of the tables, the floors first.
        tasks: in the order of the file.
        seeds: of the report runs.
        reference: label of the method that the others are compared to.
        minutes: after so many a run is ended that has not come to its end; 0: never.
        settings: of every run.
        tune: None: nothing is tuned.
        spaces: (method, task) -> what is searched; a pair that has nothing to search is not in it.
        warnings: sentences that a person should read.
        text: of the file.
        contents: digests of the files that settings name, as they are when the study is read.
        taken: (method, task) -> a search that is over, as another folder's `tuning.json` has it; see `taken`.
        tuned_at: the commit that those were made with, as far as it is known.
    """

    name: str
    methods: tuple[StudyMethod, ...]
    tasks: tuple[StudyTask, ...]
    seeds: tuple[int, ...]
    reference: str
    minutes: int = 0
    settings: Mapping[str, Value] = field(default_factory=dict)
    tune: Tune | None = None
    spaces: Mapping[tuple[str, str], Space] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    text: str = ""
    contents: Contents = field(default_factory=Contents, compare=False)
    taken: Mapping[tuple[str, str], Mapping[str, Any]] = field(default_factory=dict, compare=False)
    tuned_at: str = field(default="", compare=False)

    @property
    def floors(self) -> tuple[str, ...]:
        """Labels of the floors that the study has."""
        return tuple(method.label for method in self.methods if method.floor)

    def method(self, label: str) -> StudyMethod:
        """A method by its label."""
        return next(method for method in self.methods if method.label == label)

    def task(self, label: str) -> StudyTask:
        """A task by its label."""
        return next(task for task in self.tasks if task.label == label)

    def space(self, method: str, task: str) -> Space:
        """What is searched for a method on a task, by setting; empty if nothing is.

        Args:
            method: its label.
            task: its label.
        """
        return self.spaces.get((method, task), {})

    def given(self, method: str, task: str) -> dict[str, Value]:
        """The settings of a method's runs on a task, but for the seed and what is tuned.

        Args:
            method: its label.
            task: its label.
        """
        return merged(self.settings, self.task(task), self.method(method))

    def rounds(self, method: str, task: str, role: Role) -> int:
        """How many rounds a run has.

        Args:
            method: its label.
            task: its label.
            role: what it is for.
        """
        fewer = self.tune.rounds if self.tune and role == "tuning" else 0
        return fewer or int(self.given(method, task).get("num-server-rounds", defaults()["num-server-rounds"]))

    def tuning_spec(self, method: str, task: str, seed: int, trial: int, values: Mapping[str, Value]) -> RunSpec:
        """The run of a trial with one of the tuning seeds.

        Args:
            method: its label.
            task: its label.
            seed: of the run.
            trial: its number.
            values: that the trial tries, by setting.
        """
        rounds = {"num-server-rounds": self.tune.rounds} if self.tune and self.tune.rounds else {}
        settings = {**self.given(method, task), **rounds, **values, **ALWAYS_IN_TUNING, "seed": seed}
        clients = self.task(task).clients
        key = key_of(settings, clients, self.contents)
        return RunSpec(key, "tuning", method, task, seed, settings, clients, trial)

    def report_spec(self, method: str, task: str, seed: int, chosen: Mapping[str, Value]) -> RunSpec:
        """A run that the tables are made of.

        Args:
            method: its label.
            task: its label.
            seed: of the run.
            chosen: the tuned values, by setting; none where nothing was tuned.
        """
        settings = {"score-test": "closing", **self.given(method, task), **chosen, "seed": seed}
        clients = self.task(task).clients
        return RunSpec(key_of(settings, clients, self.contents), "report", method, task, seed, settings, clients)

    def told(self) -> dict[str, Any]:
        """What `plan.json` says; `metric` is known once a run has measured."""
        methods = [{"label": m.label, "strategy": m.strategy, "settings": dict(m.settings)} for m in self.methods]
        tasks = [{"label": t.label, "settings": dict(t.settings), "clients": t.clients} for t in self.tasks]
        return {
            "name": self.name,
            "format": FORMAT,
            "metric": None,
            "reference": self.reference,
            "floors": list(self.floors),
            "settings": dict(self.settings),
            "methods": methods,
            "tasks": tasks,
            "seeds": list(self.seeds),
            "tune": None if self.tune is None else {**vars(self.tune), "seeds": list(self.tune.seeds)},
            "version": __version__,
            "commit": environment_facts("cpu", datetime.now(UTC)).get("commit"),
            **({"minutes-per-run": self.minutes} if self.minutes else {}),
            **({"tuned-at": self.tuned_at} if self.taken else {}),
        }


def floors() -> tuple[str, ...]:
    """The methods that a comparison stands on: no exchange, and no personalisation but fine-tuning."""
    return tuple(name for name in registry.METHODS if registry.method(name).floor)


def merged(settings: Mapping[str, Value], task: StudyTask, method: StudyMethod) -> dict[str, Value]:
    """The settings of a method's runs on a task, but for the seed and what is tuned.

    Args:
        settings: of every run.
        task: its own come over these.
        method: its own come over those.
    """
    return {
        "data-seed": DATA_SEED, **settings, **task.settings, **method.settings, "strategy": method.strategy,
    }  # fmt: skip
