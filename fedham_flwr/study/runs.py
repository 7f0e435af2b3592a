"""What a run of a study is, and what came of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from fedham_flwr.settings import Value

Role = Literal["tuning", "report"]
ROLES: tuple[Role, Role] = ("tuning", "report")
State = Literal["complete", "pruned", "failed"]


@dataclass(frozen=True)
class RunSpec:
    """A run that a study wants.

    Attributes:
        key: says all that decides its results, in hexadecimal digits: two runs of one key are the same run.
        role: tuning runs choose settings by validation, and never score the test split; report runs make the tables.
        method: the label of its method in the study.
        task: the label of its task.
        seed: of the run.
        settings: by key, without `results-dir` and `resume`.
        clients: how many.
        trial: of tuning, the number of the trial; -1 of a report run.
    """

    key: str
    role: Role
    method: str
    task: str
    seed: int
    settings: Mapping[str, Value]
    clients: int
    trial: int = -1


@dataclass(frozen=True)
class RunResult:
    """What came of a run: `runs/<key>/run.json`, which is written last.

    Attributes:
        state: complete; pruned, ended early since it promised nothing; or failed.
        error: one sentence of a run that failed.
        directory: of the run, below `runs/<key>`; None of one that left nothing.
        steps: (round, value) of the validation metric at each evaluation of every client; the last is the closing one.
        seconds: that it took, over all its attempts.
        metric: by name; empty of a run that has not measured.
        higher: whether more of it is better.
    """

    state: State
    error: str = ""
    directory: Path | None = None
    steps: tuple[tuple[int, float], ...] = ()
    seconds: float = 0.0
    metric: str = ""
    higher: bool = True

    @property
    def value(self) -> float | None:
        """The validation metric of the model that the method stands for, in the closing evaluation."""
        return self.steps[-1][1] if self.state == "complete" and self.steps else None
