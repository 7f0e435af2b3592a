"""The runs of a study's folder: which of them its tables are made of, and what became of the others."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

from fedham_flwr.analysis.facts import RunFacts
from fedham_flwr.analysis.opened import Fault, open_run
from fedham_flwr.core.errors import UserError, cause
from fedham_flwr.settings import defaults

ENTRIES = ("name", "methods", "tasks", "seeds", "floors", "reference")
"""What a plan must hold."""
NOT_YET = "the study has not done it yet"
Stored = Mapping[str, Any]
"""A run.json, with `folder`, where it lies."""


def read_json(file: Path, wanted: type) -> Any:
    """What a JSON file of a study holds.

    Args:
        file: its path.
        wanted: dict or list.

    Raises:
        UserError: it cannot be read, or holds something else.
    """
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{file} cannot be read: {cause(error)}; wanted the file of a study") from error
    if not isinstance(found, wanted):
        raise UserError(f"{file} holds {type(found).__name__}, wanted {wanted.__name__}: the file of a study")
    return found


def read_plan(folder: Path) -> dict[str, Any]:
    """What a study's `plan.json` says.

    Args:
        folder: of the study.

    Raises:
        UserError: it cannot be read, or lacks something.
    """
    plan: dict[str, Any] = read_json(folder / "plan.json", dict)
    if lacking := [name for name in ENTRIES if name not in plan]:
        raise UserError(f"{folder / 'plan.json'} has no {', '.join(lacking)}: wanted the plan of a study")
    return plan


def runs_of(folder: Path, plan: Mapping[str, Any], tuning: Sequence[Mapping[str, Any]]) -> list[RunFacts | Fault]:
    """The reporting runs that a plan wants, those that are not there as faults, and the tuning runs that failed.

    Args:
        folder: of the study.
        plan: its `plan.json`.
        tuning: its `tuning.json`.
    """
    stored = [*_stored(folder)]
    tuned = {(each["method"], each["task"]): each for each in tuning}
    found: list[RunFacts | Fault] = []
    for method, task in product(plan["methods"], plan["tasks"]):
        labels = method["label"], task["label"]
        its = tuned.get(labels, {"trials": [], "chosen": None})
        expected, absent = _expected(plan, method, task, _values(its)), _absent(its)
        found += [_of(stored, (*labels, int(seed)), expected, absent) for seed in plan["seeds"]]
    failed = (run for run in stored if run["role"] == "tuning" and run["state"] == "failed")
    return found + [_fault(run, "failed", str(run["error"])) for run in failed]


def _stored(folder: Path) -> Iterator[Stored]:
    """All runs, in the order in which they ended, the earliest first; one of several labels is there for each."""
    for file in sorted((folder / "runs").glob("*/run.json"), key=lambda file: (file.stat().st_mtime_ns, file)):
        run = {**read_json(file, dict), "folder": file.parent}
        yield run
        for role, method, task, trial in run.get("also", ()):
            yield {**run, "role": role, "method": method, "task": task, "trial": trial}


def _expected(
    plan: Mapping[str, Any], method: Mapping[str, Any], task: Mapping[str, Any], chosen: Mapping[str, Any]
) -> dict[str, Any]:
    """What the settings of a run are to be, by a plan and what tuning chose."""
    layers = (plan.get("settings", {}), task["settings"], method["settings"], chosen)
    return {key: value for layer in layers for key, value in layer.items()} | {"clients": task["clients"]}


def _values(tuned: Mapping[str, Any]) -> Mapping[str, Any]:
    """The values that tuning has chosen; none before it has."""
    return next((trial["values"] for trial in tuned["trials"] if trial["number"] == tuned["chosen"]), {})


def _absent(tuned: Mapping[str, Any]) -> str:
    """Why there are no report runs, where tuning is the reason."""
    trials = tuned["trials"]
    if not trials or any(trial["state"] == "complete" for trial in trials):
        return NOT_YET
    return f"none of {len(trials)} trial{'s' * (len(trials) > 1)} of its tuning came to its end"


def _of(
    stored: Sequence[Stored], which: tuple[str, str, int], expected: Mapping[str, Any], absent: str
) -> RunFacts | Fault:
    """The run of a method on a task with a seed; why it is absent if it is.

    A folder may also hold runs of an earlier version of the study; the last one with the settings of this one counts.
    """
    usual = defaults()  # a setting that one label names may be one that another leaves as it is
    mine = [run for run in stored if run["role"] == "report" and (run["method"], run["task"], run["seed"]) == which]
    fitting = [
        run
        for run in mine
        if all({**usual, **run["settings"], "clients": run["clients"]}.get(key) == expected[key] for key in expected)
    ]
    if not fitting:
        return Fault(*which, "missing", absent)
    run = fitting[-1]
    if run["state"] != "complete" or not run["directory"]:
        return _fault(run, "failed", str(run["error"]) or f"it ended as {run['state']}")
    found = open_run(run["folder"] / run["directory"], which[0], which[1], run["key"])
    return found if isinstance(found, RunFacts) else _fault(run, "failed", found.error)


def _fault(run: Stored, state: Any, error: str) -> Fault:
    directory = run["folder"] / run["directory"] if run["directory"] else None
    return Fault(run["method"], run["task"], run["seed"], state, error, run["role"], run["key"], directory)
