"""Carries a study out: tuning, the report runs with what was chosen, and at the end the tables and the page."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from fedham_flwr.core.errors import UnwritableError, reason
from fedham_flwr.core.interrupts import Interruptible
from fedham_flwr.study.agenda import Agenda
from fedham_flwr.study.board import Board, title
from fedham_flwr.study.messages import Event
from fedham_flwr.study.planned import Plan
from fedham_flwr.study.pool import Pool
from fedham_flwr.study.results import write_results
from fedham_flwr.study.runs import RunResult, RunSpec
from fedham_flwr.study.store import Store

if TYPE_CHECKING:
    from rich.console import Console

LOG = "study.log"
TICK = 1.0
"""Seconds between two looks at the clock while nothing happens."""
ATTEMPTS = 2
"""So often a run is tried whose worker dies."""


@dataclass(frozen=True)
class Outcome:
    """How many runs of a study there are.

    Attributes:
        complete: that have come to their end.
        pruned: ended early, since they promised nothing.
        failed: that failed.
        left_out: report runs that were not begun, since no trial of their tuning came to its end.
        left: not done yet.
    """

    complete: int = 0
    pruned: int = 0
    failed: int = 0
    left_out: int = 0
    left: int = 0

    @property
    def text(self) -> str:
        """The counts in a sentence."""
        parts = [f"{self.complete} run{'s' * (self.complete != 1)} complete"]
        parts += [f"{self.pruned} ended early"] if self.pruned else []
        parts += [f"{self.failed} failed"] if self.failed else []
        parts += [f"{self.left_out} left out, since no trial of their tuning came to its end"] if self.left_out else []
        return ", ".join(parts + ([f"{self.left} to do"] if self.left else []))


def conduct(plan: Plan, store: Store, pool: Pool, console: Console | None = None) -> Outcome:
    """Do all runs of a study that are not done.

    Args:
        plan: the study's.
        store: of its folder, which no other process writes to.
        pool: does the runs; it is closed at the end, whatever happens.
        console: where to show how far it is; stdout by default.

    Raises:
        KeyboardInterrupt: the user has interrupted; the runs that were going on will go on from their checkpoints.
        UserError: a file cannot be written, or there can be no workers.
    """
    with contextlib.ExitStack() as stack:
        stack.callback(pool.close)
        board = stack.enter_context(Board(console))
        study = _Study(plan, store, pool, board)
        study.note(f"begins: {plan.name}, up to {pool.workers} runs at once")
        try:
            with Interruptible():  # inside a queue's waiting an interrupt can come out as "release unlocked lock"
                study.carry_out()
        except KeyboardInterrupt:
            pool.close()
            study.note(f"interrupted: {study.outcome().text}")
            board.say(study.outcome().text)
            study.write()
            raise
        study.write()
        study.note(f"ends: {study.outcome().text}")
        return study.outcome()


@dataclass
class _Study:
    """A study that is going on.

    Attributes:
        steps: key -> the steps of a run that is going on.
        attempts: key -> how often a run was begun.
    """

    plan: Plan
    store: Store
    pool: Pool
    board: Board
    agenda: Agenda = field(init=False)
    steps: dict[str, list[tuple[int, float]]] = field(default_factory=dict)
    attempts: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.agenda = Agenda(self.plan, self.store)

    def carry_out(self) -> None:
        """Do all runs."""
        self.agenda.advance()
        while True:
            self._show()
            for spec in self.agenda.ready([each.spec for each in self.board.running.values()]):
                if len(self.board.running) < self.pool.workers:
                    self._begin(spec)
            if not self.board.running:
                return
            for event in self.pool.events(TICK):
                self._heard(event)
            self._end_those_that_take_too_long()

    def note(self, text: str) -> None:
        """Write a line to study.log."""
        file = self.store.folder / LOG
        try:
            with file.open("a", encoding="utf-8") as opened:
                opened.write(f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC  {text}\n")
        except OSError as error:
            raise UnwritableError(f"the study cannot be written to {self.store.folder}: {reason(error)}") from error

    def write(self) -> None:
        """Write the tables and the page."""
        for line in write_results(self.store.folder):
            self.board.say(line)

    def outcome(self) -> Outcome:
        """How many runs there are of each kind."""
        states = [result.state for result in self.agenda.results.values()]
        counts = {state: states.count(state) for state in ("complete", "pruned", "failed")}
        left_out = len(self.agenda.undecided) * len(self.plan.seeds)
        return Outcome(**counts, left_out=left_out, left=self.agenda.total() - len(states))

    def _begin(self, spec: RunSpec) -> None:
        self.steps[spec.key] = []
        self.attempts[spec.key] = self.attempts.get(spec.key, 0) + 1
        self.board.began(spec)
        self.note(f"run {spec.key} begins: {title(spec)}")
        self.pool.submit(spec, self.store.run_folder(spec.key))

    def _heard(self, event: Event) -> None:
        if event.key not in self.board.running:
            return
        spec = self.board.running[event.key].spec
        if event.kind == "round":
            self.board.round(event.key, event.round)
        elif event.kind == "step":
            self._step(spec, event)
        elif event.kind == "ended":
            assert event.result is not None
            self._ended(spec, event.result)
        elif event.kind == "full":
            # What it says behind that is of a run that is not part of a study.
            said = event.error.partition("; ")[0]
            raise UnwritableError(f"{said}; what is done is kept, and after room is made the same command goes on")
        elif event.kind == "died":
            self._died(spec, event.error)

    def _step(self, spec: RunSpec, event: Event) -> None:
        steps = self.steps[spec.key]
        steps.append((event.round, event.value))
        if spec.role == "tuning":
            self.pool.answer(spec.key, self.agenda.stops(spec.key, steps))

    def _died(self, spec: RunSpec, why: str) -> None:
        self.note(f"run {spec.key}: {why}")
        if self.attempts[spec.key] < ATTEMPTS:
            self.board.running.pop(spec.key)
            return
        seconds = self.board.seconds(spec.key)
        self._ended(spec, RunResult("failed", f"{why}, {ATTEMPTS} times", None, tuple(self.steps[spec.key]), seconds))

    def _end_those_that_take_too_long(self) -> None:
        """End the runs whose `minutes-per-run` are over, and with each its worker, which may hang."""
        minutes = self.plan.minutes
        for key, each in list(self.board.running.items()) if minutes else ():
            if (seconds := self.board.seconds(key)) > 60 * minutes:
                self.pool.end(key)
                why = f"it was not done after minutes-per-run = {minutes}, and was ended"
                self._ended(each.spec, RunResult("failed", why, None, tuple(self.steps[key]), seconds))

    def _ended(self, spec: RunSpec, result: RunResult) -> None:
        self.store.write_result(spec, result)
        self.agenda.done(spec, result)
        if result.metric:
            self.store.write_metric(result.metric)
        value = "" if result.value is None else f" with {result.metric} {result.value:.6g}"
        why = f" ({result.error})" if result.error else ""
        self.note(f"run {spec.key} is {result.state}{value}{why} after {result.seconds:.1f} s: {title(spec)}")
        self.board.running.pop(spec.key)
        decided = self.agenda.advance()
        self._show()
        self.board.ended(spec, result)
        for pair in decided:
            self._decided(*pair)

    def _decided(self, method: str, task: str) -> None:
        tuning = self.agenda.tunings[method, task]
        best = tuning.entry()["chosen"]
        if best is None:
            text = f"{method}  {task}  no trial came to its end: its report runs are left out"
        else:
            values = ", ".join(f"{key} = {value}" for key, value in tuning.trials[best]["values"].items())
            text = f"{method}  {task}  trial {best} of {len(tuning.trials)} is chosen: {values}"
        self.note(text)
        self.board.say(text)

    def _show(self) -> None:
        left = self.agenda.times.left(self.agenda.chains(), self.pool.workers, self.board.spent())
        self.board.far(len(self.agenda.results), self.agenda.total(), left)
