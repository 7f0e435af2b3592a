"""Runs that are compared: those of a study, or any run directories."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from fedham_flwr.analysis.facts import RunFacts, Split
from fedham_flwr.training.metrics import ACCURACY, Metric


@dataclass(frozen=True)
class Fault:
    """A run that is in no table, and why.

    Attributes:
        method: its label.
        task: its task's.
        seed: of the run.
        state: failed; or missing, of a study that has not done it yet.
        error: one sentence.
        role: report or tuning.
        key: in a study; empty otherwise.
        directory: of what it left; None of nothing.
    """

    method: str
    task: str
    seed: int
    state: Literal["failed", "missing"]
    error: str
    role: str = "report"
    key: str = ""
    directory: Path | None = None


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

    def values(self, method: str, task: str, phase: str = "") -> dict[int, float]:
        """Seed -> mean over the clients in the closing evaluation; of seeds in which it was measured.

        Args:
            method: its label.
            task: its label.
            phase: before or after; by default that of the model that the method stands for.
        """
        found = {seed: run.value(phase, self.split) for seed, run in self.of(method, task).items()}
        return {seed: value for seed, value in found.items() if value is not None}


def of_study(folder: Path) -> Collection:
    """The runs of a study's folder, finished or not.

    Args:
        folder: with `plan.json`, `tuning.json` if anything was tuned, and `runs/`.

    Raises:
        UserError: it is not the folder of a study.
    """
    raise NotImplementedError(folder)


def of_runs(folders: Sequence[Path]) -> Collection:
    """Run directories that no study made.

    Methods are labelled by their strategy, and by the settings in which runs of one strategy differ; tasks by what
    decides the data: data set, partition, number of clients.

    Args:
        folders: of runs, or folders that hold some.

    Raises:
        UserError: there is no run.
    """
    raise NotImplementedError(folders)
