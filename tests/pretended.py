"""Studies whose runs are only pretended: a pool in this process that tells of runs which somebody has made up."""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from fedham_flwr.core.search_space import Choice, Range, Space
from fedham_flwr.study.messages import Event
from fedham_flwr.study.planned import Plan, StudyMethod, StudyTask, Tune
from fedham_flwr.study.runs import RunResult, RunSpec

ROUNDS = 6
SPACE: Space = {"learning-rate": Range(0.001, 1.0, 0.02, log=True), "batch-size": Choice((10, 20), 10)}


def plan(labels: str = "local fedavg fedper", tune: Tune | None = None, **given: Any) -> Plan:
    """A study of digits, small enough to be looked through."""
    methods = [StudyMethod(label, label) for label in labels.split()]
    task = StudyTask("digits", {"dataset": "digits"}, 10)
    settings = {"num-server-rounds": ROUNDS}
    spaces = {(method.label, "digits"): SPACE for method in methods} if tune else {}
    return Plan(**{
        "name": "digits", "methods": tuple(methods), "tasks": (task,), "seeds": (0, 1, 2), "reference": "local",
        "settings": settings, "tune": tune, "spaces": spaces, **given,
    })  # fmt: skip


def curve(spec: RunSpec) -> list[tuple[int, float]]:
    """The steps of a run, a function of its settings and its seed; the last one is the closing one."""
    rate = float(spec.settings.get("learning-rate", 0.02))
    what = f"{spec.settings['strategy']} {spec.seed} {spec.settings.get('batch-size')}"
    digest = hashlib.sha256(what.encode()).digest()
    best = 0.9 - 0.1 * abs(math.log10(rate) + 1.5) + 0.02 * digest[0] / 255
    return [(number, best * (1 - 0.5**number)) for number in range(1, ROUNDS + 2)]


class CrashError(Exception):
    """The program that conducts the study is gone."""


@dataclass
class Pretended:
    """A pool in which runs go on in turns that are drawn.

    Attributes:
        workers: how many runs at once.
        seed: of the turns.
        fails: a run fails with this sentence; `died` for one whose worker dies.
        higher: whether more is better; else the value is an error, 1 less what it would be.
        hangs: a run that is never heard of again after three rounds.
        until: after so many events everything ends; None: never.
        began: every run that was begun, in order.
        stopped: keys of those that were told to stop.
        ended: keys of those that were ended.
        now: seconds of a clock, by which an event comes each second.
    """

    workers: int = 2
    seed: int = 0
    fails: Callable[[RunSpec], str] = lambda _: ""
    higher: bool = True
    hangs: Callable[[RunSpec], bool] = lambda _: False
    until: int | None = None
    began: list[RunSpec] = field(default_factory=list)
    stopped: list[str] = field(default_factory=list)
    ended: list[str] = field(default_factory=list)
    now: float = 0.0
    closed: bool = False
    most: int = 0
    _going: dict[str, Iterator[Event | None]] = field(default_factory=dict)
    _answers: dict[str, bool] = field(default_factory=dict)
    _told: int = 0

    def __post_init__(self) -> None:
        self._draws = np.random.default_rng(self.seed)

    def submit(self, spec: RunSpec, folder: Path) -> None:
        """As `Pool.submit`."""
        assert len(self._going) < self.workers
        assert spec.key not in self._going
        assert folder.name == spec.key
        self.began.append(spec)
        self._going[spec.key] = self._course(spec)
        self.most = max(self.most, len(self._going))

    def answer(self, key: str, stop: bool) -> None:
        """As `Pool.answer`."""
        assert key not in self._answers
        self._answers[key] = stop

    def events(self, timeout: float) -> list[Event]:
        """As `Pool.events`."""
        self._told, self.now = self._told + 1, self.now + 1
        if self.until is not None and self._told > self.until:
            raise CrashError
        key = sorted(self._going)[self._draws.integers(len(self._going))]
        if (event := next(self._going[key])) is None:
            return []
        if event.kind in ("ended", "died", "full"):
            del self._going[key]
        return [event]

    def end(self, key: str) -> None:
        """As `Pool.end`."""
        del self._going[key]
        self.ended.append(key)

    def close(self) -> None:
        """As `Pool.close`."""
        self.closed = True

    def _course(self, spec: RunSpec) -> Iterator[Event | None]:
        fault, steps = self.fails(spec), [(at, value if self.higher else 1 - value) for at, value in curve(spec)]
        told: list[tuple[int, float]] = []
        for number, value in steps:
            told.append((number, value))
            if number <= ROUNDS:
                yield Event("step", spec.key, number, value)
                if spec.role == "tuning" and self._answers.pop(spec.key):
                    self.stopped.append(spec.key)
                    yield self._end(spec, "pruned", told)
            if self.hangs(spec) and number == 3:
                yield from itertools.repeat(None)
            if fault in ("died", "full") and number == 3:
                yield Event("died" if fault == "died" else "full", spec.key, error="it is gone")
            elif fault and number == 3:
                yield self._end(spec, "failed", told, fault)
            yield Event("round", spec.key, number)
        yield self._end(spec, "complete", told)

    def _end(self, spec: RunSpec, state: Any, steps: list[tuple[int, float]], error: str = "") -> Event:
        told = tuple(steps)
        metric = "accuracy" if self.higher else "rmse"
        result = RunResult(state, error, None, told, float(len(told)), metric, self.higher)
        return Event("ended", spec.key, result=result)
