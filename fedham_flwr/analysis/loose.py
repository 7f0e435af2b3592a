"""Run directories that no study made, with labels for their methods and tasks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedham_flwr.analysis import labels
from fedham_flwr.analysis.facts import RunFacts
from fedham_flwr.analysis.opened import Fault, open_run
from fedham_flwr.core.errors import UserError
from fedham_flwr.core.imports import section_of
from fedham_flwr.reporting.run_directory import RunDirectory
from fedham_flwr.resume.runs import read_settings, read_summary

DEEP = 3
"""Folders between one that is named and a run in it: results/<strategy>/<time>-<seed>."""


@dataclass(frozen=True)
class _Found:
    """A run directory, and what decides its labels."""

    directory: Path
    strategy: str
    method: Mapping[str, Any]
    data: Mapping[str, Any]
    dataset: str


def directories(folders: Sequence[Path]) -> list[Path]:
    """The run directories that are named, or lie in folders that are; each once.

    Args:
        folders: of runs, or of folders of runs.

    Raises:
        UserError: one holds no run.
    """
    found: dict[Path, None] = {}
    for folder in folders:
        inside = [file.parent for deep in range(DEEP) for file in sorted(folder.glob("*/" * deep + "config.toml"))]
        if not inside:
            raise UserError(
                f"{folder.absolute()} holds no run: wanted a directory that a run left, which has a config.toml, or "
                "the folder of a study, which has a plan.json"
            )
        found |= dict.fromkeys(path.resolve() for path in inside)
    return list(found)


def runs_of(folders: Sequence[Path]) -> list[RunFacts | Fault]:
    """The runs with their labels, by method and task, in the order of their directories.

    Args:
        folders: as of `directories`.

    Raises:
        UserError: one holds no run.
    """
    found = [_look(directory) for directory in directories(folders)]
    tasks = _labels([each.dataset for each in found], [each.data for each in found])
    methods = _method_labels(found, tasks)
    return [open_run(run.directory, *names) for run, names in zip(found, zip(methods, tasks, strict=True), strict=True)]


def _look(directory: Path) -> _Found:
    settings, summary = read_settings(directory), read_summary(directory)
    clients = summary.get("num-clients") or len(RunDirectory(directory).read_clients())
    with_clients = {**settings, "clients": clients}
    return _Found(
        directory,
        section_of(str(settings.get("strategy", summary.get("strategy", "")))),
        labels.of_method(with_clients, str(summary.get("model", ""))),
        labels.of_data(with_clients),
        labels.data_name(settings),
    )


def _labels(names: Sequence[str], groups: Sequence[Mapping[str, Any]]) -> list[str]:
    """The label of each run; runs of the same name and settings have the same."""
    different = {
        repr((name, sorted(group.items()))): at for at, (name, group) in enumerate(zip(names, groups, strict=True))
    }
    places = list(different.values())
    given = labels.labelled([names[at] for at in places], [groups[at] for at in places])
    by_key = dict(zip(different, given, strict=True))
    return [by_key[repr((name, sorted(group.items())))] for name, group in zip(names, groups, strict=True)]


def _method_labels(found: Sequence[_Found], tasks: Sequence[str]) -> list[str]:
    """Of each run: its strategy, unless a task has runs of that strategy with different settings.

    A method may have other settings on each task, as after tuning, and is then still one method.
    """
    kinds: dict[tuple[str, str], set[str]] = {}
    for run, task in zip(found, tasks, strict=True):
        kinds.setdefault((run.strategy, task), set()).add(repr(sorted(run.method.items())))
    several = {strategy for (strategy, _), different in kinds.items() if len(different) > 1}
    full = _labels([run.strategy for run in found], [run.method for run in found])
    return [label if run.strategy in several else run.strategy for run, label in zip(found, full, strict=True)]
