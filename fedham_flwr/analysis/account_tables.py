"""The tables by which a comparison can be checked and repeated: tuned values, settings, failures, runs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from fedham_flwr.analysis import labels
from fedham_flwr.analysis.cells import Cell, Column, Table
from fedham_flwr.analysis.collection import Collection
from fedham_flwr.analysis.numbers import EMPTY, amount, averaged, count
from fedham_flwr.analysis.rows import method_cell, task_cells, task_columns, unit_of, with_unit
from fedham_flwr.settings import defaults

SHORT = 12
"""Hexadecimal digits of a digest or a commit that are shown."""
STATES = ("complete", "pruned", "failed")
EDGE = "at the edge of what was searched"


def tuned(collection: Collection) -> Table:
    """What tuning chose for each method and task, a setting in a row, with the paper's value and the trials.

    Args:
        collection: the runs.
    """
    unit = unit_of(collection)
    columns = [
        Column("method", "text"),
        *task_columns(collection),
        Column("setting", "text"),
        Column("chosen", "text", help="the value of the trial with the best validation score"),
        Column("start", "text", help="the paper's value, or the default where it prints none: the first trial's"),
        Column("source", "text", help="where the paper prints it"),
        Column("validation", help="score of the chosen trial, mean over the tuning seeds", unit=unit),
        Column("at the start", help="score of the first trial", unit=unit),
        *(Column(state, help=f"trials that ended as {state}") for state in STATES),
    ]
    rows = [row for each in collection.tuning for row in _tuned(collection, each)]
    notes = [f"Chosen {EDGE}: {', '.join(edges)}."] if (edges := [*_edges(collection)]) else []
    return Table("tuned", "Values chosen on validation", tuple(columns), tuple(rows), tuple(notes))


def _tuned(collection: Collection, each: Mapping[str, Any]) -> Iterator[tuple[Cell, ...]]:
    task, trials = str(each["task"]), each["trials"]
    chosen = next((trial for trial in trials if trial["number"] == each["chosen"]), None)
    first = next((trial for trial in trials if trial["number"] == 0), None)
    numbers = [count(sum(trial["state"] == state for trial in trials)) for state in STATES]
    scores = [_score(collection, task, trial) for trial in (chosen, first)]
    for key, space in each["space"].items():
        value = (
            Cell(EMPTY)
            if chosen is None
            else Cell(labels.value_text(chosen["values"][key]), note=_edge(space, chosen, key))
        )
        words = [Cell(key), value, Cell(labels.value_text(space["start"])), Cell(str(space.get("source", "")))]
        yield (method_cell(collection, each["method"]), *task_cells(collection, task), *words, *scores, *numbers)


def _score(collection: Collection, task: str, trial: Mapping[str, Any] | None) -> Cell:
    value = None if trial is None else trial["value"]
    metric = collection.metrics[task]
    if value is None:
        return Cell(EMPTY, note="no trial that was completed")
    shown = averaged([float(value)], metric, 1)
    return with_unit(collection, task, Cell(shown.text, shown.value))


def _edge(space: Mapping[str, Any], chosen: Mapping[str, Any], key: str) -> str:
    """That a number was chosen at an end of its range, beyond which nothing was tried; empty if not."""
    ends = (space.get("low"), space.get("high"))
    return EDGE if "low" in space and chosen["values"][key] in ends else ""


def _edges(collection: Collection) -> Iterator[str]:
    for each in collection.tuning:
        chosen = next((trial for trial in each["trials"] if trial["number"] == each["chosen"]), None)
        for key, space in each["space"].items() if chosen else ():
            if chosen and _edge(space, chosen, key):
                yield f"{each['method']}'s {key} on {each['task']}"


def settings(collection: Collection) -> Table:
    """The settings in which methods differ, and those of a method's own that are not the defaults.

    Args:
        collection: the runs.
    """
    found = {method: _settings(collection, method) for method in collection.methods}
    keys = [key for key in labels.differing(found.values()) if key != "strategy"]
    columns = [Column("setting", "text"), *(Column(method, "text") for method in found)]
    rows = [(Cell(key), *(Cell(each.get(key, EMPTY)) for each in found.values())) for key in keys]
    notes = ["Settings that are the same for all methods, and defaults of a method's own, are left out."]
    return Table("settings", "Settings in which methods differ", tuple(columns), tuple(rows), tuple(notes))


def _settings(collection: Collection, method: str) -> dict[str, str]:
    """Setting -> its value in words; several, where it is not the same on each task."""
    found: dict[str, list[str]] = {}
    usual = defaults()
    for run in collection.runs:
        if run.method == method:
            for key, value in labels.of_method(run.settings, str(run.summary["model"])).items():
                if "." not in key or usual.get(key) != value:
                    found.setdefault(key, []).append(labels.value_text(value))
    return {key: " | ".join(dict.fromkeys(values)) for key, values in found.items()}


def failures(collection: Collection) -> Table:
    """The runs that are in no table.

    Args:
        collection: the runs.
    """
    columns = tuple(Column(name, "text") for name in ("method", "task", "seed", "role", "state", "why", "key"))
    rows = [
        (Cell(each.method), Cell(each.task), Cell(str(each.seed)), Cell(each.role), Cell(each.state), Cell(each.error),
         Cell(each.key[:SHORT]))
        for each in collection.failures
    ]  # fmt: skip
    return Table("failures", "Runs that are in no table", columns, tuple(rows))


def runs(collection: Collection) -> Table:
    """Every run, with what identifies its code and its result.

    Args:
        collection: the runs.
    """
    columns = (
        Column("method", "text"), Column("task", "text"), Column("seed"),
        Column("score", help=f"{collection.split}, mean over clients, of the model that the method stands for",
               unit=unit_of(collection)),
        Column("s", help="from its start to its end"), Column("clients lost", help="replies that failed"),
        Column("commit", "text"), Column("digest", "text", "of its result: equal if and only if the results are"),
        Column("key", "text"), Column("directory", "text"),
    )  # fmt: skip
    rows = []
    for run in collection.runs:
        metric = collection.metrics[run.task]
        shown = averaged([value] if (value := run.value(split=collection.split)) is not None else [], metric, 1)
        commit, digest = str(run.environment.get("commit", "")), str(run.summary.get("digest", ""))
        rows.append((
            Cell(run.method), Cell(run.task), count(run.seed),
            with_unit(collection, run.task, Cell(shown.text, shown.value)),
            amount(run.summary["seconds"]["total"]), count(int(run.summary["failures"])),
            Cell(_short(commit) or EMPTY), Cell(digest[:SHORT] or EMPTY), Cell(run.key[:SHORT] or EMPTY),
            Cell("/".join(run.directory.parts[-2:])),
        ))  # fmt: skip
    notes = [f"Digests, commits and keys are shortened to {SHORT} digits; summary.json of each run has them whole."]
    return Table("runs", "Runs", columns, tuple(rows), tuple(notes) if rows else ())


def _short(commit: str) -> str:
    name, _, dirty = commit.partition("-")
    return name[:SHORT] + (f"-{dirty}" if dirty else "")
