"""Follows one run of a study: its steps on validation, of which somebody is told who may stop it."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from fedham_flwr.callbacks.protocol import Callback, RoundReport, RunStart

Step = tuple[int, float]
"""A round in which every client was evaluated, and the validation metric of the model that the method stands for."""


class Listener(Protocol):
    """Is told of a run's course."""

    def round(self, number: int) -> None:
        """A round is over.

        Args:
            number: which.
        """

    def step(self, number: int, value: float) -> bool:
        """Every client was evaluated; whether the run goes on.

        Args:
            number: the round.
            value: the metric.
        """


class Stopped(BaseException):
    """The run was told to stop: no error, which a user's own code might catch."""


class Follower(Callback):
    """The callback of a run of a study.

    Args:
        listener: is told of each round, and of each step but the closing one.

    Attributes:
        directory: of the run; None before its first round.
        metric: by which rounds are compared; empty before the first round.
        higher: whether more of it is better.
        validated: how many clients have validation samples.
        steps: so far, and those of rounds that an earlier attempt has done.
        closed: the last step is that of the closing evaluation.
        fault: the first failure of a client in the last round told of; empty without one.
    """

    def __init__(self, listener: Listener) -> None:
        self._listener = listener
        self.directory: Path | None = None
        self.metric, self.higher, self.validated = "", True, 0
        self.steps: list[Step] = []
        self.closed, self.fault = False, ""

    def on_start(self, run: RunStart) -> None:
        """Take note of what is measured."""
        self.directory, self.metric = run.directory, run.metric
        self.higher, self.validated = run.metrics[run.metric], run.validated
        self.steps, self.closed, self.fault = [], False, ""

    def on_round(self, report: RoundReport) -> None:
        """Tell of it.

        Raises:
            Stopped: the run is not to go on.
        """
        self.fault = next((f"client {failure.client}: {failure.error}" for failure in report.failures), "")
        if report.value is not None:
            self.steps.append((report.round, report.value))
            self.closed = report.closing
            if not report.closing and not self._listener.step(report.round, report.value):
                raise Stopped
        self._listener.round(report.round)
