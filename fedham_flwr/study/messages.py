"""What a worker of a study and whoever started it say to each other: one JSON object in a line."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from fedham_flwr.study.runs import RunResult, RunSpec

Kind = Literal["ready", "round", "step", "ended", "full", "died"]


@dataclass(frozen=True)
class Event:
    """What has happened to a run, or to a worker.

    Attributes:
        kind: ready, the worker takes runs; round, one is over; step, every client was evaluated, and a tuning run waits
            for an answer; ended; full, a file cannot be written; died, the worker is gone, and with it what it did.
        key: of the run; empty of a worker that had none.
        round: of a round or a step.
        value: of a step.
        result: of a run that has ended.
        error: of a disk that is full, or of a worker that is gone.
    """

    kind: Kind
    key: str = ""
    round: int = 0
    value: float = 0.0
    result: RunResult | None = None
    error: str = ""


def write_event(event: Event) -> str:
    """An event as a line."""
    told = asdict(event)
    if event.result is not None and event.result.directory is not None:
        told["result"]["directory"] = str(event.result.directory)
    return json.dumps(told) + "\n"


def read_event(line: str) -> Event:
    """The inverse of `write_event`."""
    told: dict[str, Any] = json.loads(line)
    if (result := told["result"]) is not None:
        directory = result["directory"]
        steps = tuple((number, value) for number, value in result["steps"])
        result |= {"directory": None if directory is None else Path(directory), "steps": steps}
        told["result"] = RunResult(**result)
    return Event(**told)


def write_run(spec: RunSpec, folder: Path) -> str:
    """The order to do a run, as a line.

    Args:
        spec: the run.
        folder: where.
    """
    return json.dumps({"run": {**vars(spec), "settings": dict(spec.settings)}, "folder": str(folder)}) + "\n"


def read_run(line: str) -> tuple[RunSpec, Path]:
    """The inverse of `write_run`."""
    told: dict[str, Any] = json.loads(line)
    return RunSpec(**told["run"]), Path(told["folder"])


def write_answer(stop: bool) -> str:
    """What to do after a step, as a line."""
    return json.dumps({"stop": stop}) + "\n"


def read_answer(line: str) -> bool:
    """The inverse of `write_answer`."""
    return bool(json.loads(line)["stop"])
