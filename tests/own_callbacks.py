"""Callbacks that tests name by their import path: one that writes down all it is told, and some that are wrong."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from fedham_flwr import Callback, RoundReport, RunEnd, RunStart


class Listener(Callback):
    """Writes down what it is told, and says what it was made to say."""

    def __init__(self, stop_at: int = 0) -> None:
        self.stop_at = stop_at
        self.runs: list[RunStart] = []
        self.reports: list[RoundReport] = []
        self.ends: list[RunEnd] = []

    def on_start(self, run: RunStart) -> None:
        self.runs.append(run)

    def on_round(self, report: RoundReport) -> str | None:
        self.reports.append(report)
        return f"it is round {report.round}" if report.round == self.stop_at else None

    def on_end(self, end: RunEnd) -> None:
        self.ends.append(end)


@dataclass(frozen=True)
class AtSettings:
    at: int = 2


class StopAt(Callback):
    """With a dataclass of settings."""

    def __init__(self, settings: AtSettings) -> None:
        self.at = settings.at

    def on_round(self, report: RoundReport) -> str | None:
        return "by its setting" if report.round == self.at else None


class Failing(Callback):
    """Fails when it is asked to."""

    def __init__(self, where: str = "round", at: int = 3) -> None:
        self.where, self.at = where, at

    def on_start(self, run: RunStart) -> None:
        if self.where == "start":
            raise ValueError("no start")

    def on_round(self, report: RoundReport) -> str | None:
        if self.where == "round" and report.round == self.at:
            raise ValueError(f"no round\nat {report.round}")
        return True if self.where == "answer" else None  # type: ignore[return-value]

    def on_end(self, end: RunEnd) -> None:
        if self.where == "end":
            raise ValueError("no end")


class Unmakable(Callback):
    def __init__(self) -> None:
        raise ValueError("not today")


class OnlyRounds:
    def on_round(self, report: RoundReport) -> str | None:
        return None


def make() -> Any:
    return OnlyRounds()


READY = Listener()
NUMBER = 3
