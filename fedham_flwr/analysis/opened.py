"""Run directories opened for a comparison: the facts of a run that came to its end, or why it is in no table."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from fedham_flwr.analysis.facts import RunFacts
from fedham_flwr.resume.runs import read_settings, read_summary


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


def open_run(directory: Path, method: str, task: str, key: str = "") -> RunFacts | Fault:
    """A run's facts; a fault of one that did not come to its end.

    Args:
        directory: of the run.
        method: its label.
        task: its task's.
        key: in a study.
    """
    settings, summary = read_settings(directory), read_summary(directory)
    seed = int(settings.get("seed", 0))
    if error := _unfinished(summary) or ("" if settings else "its config.toml cannot be read"):
        return Fault(method, task, seed, "failed", error, key=key, directory=directory)
    return RunFacts(directory, method, task, seed, settings, summary, read_environment(directory), key)


def read_environment(directory: Path) -> dict[str, Any]:
    """A run's `environment.json`; empty if there is none that can be read.

    Args:
        directory: of the run.
    """
    try:
        return dict(json.loads((directory / "environment.json").read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return {}


def _unfinished(summary: Mapping[str, Any]) -> str:
    """Why a run has no scores of its end; empty if it has."""
    if not summary:
        return "it has not come to its end"
    if "error" in summary:
        return str(summary["error"])
    return "" if summary.get("exported") and summary.get("final") else "it has no closing evaluation"
