"""What a study shows while it goes on: a bar and the runs that are going on in a terminal, lines anywhere else."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fedham_flwr.reporting.console import clean, duration, make_console, plain
from fedham_flwr.study.runs import RunResult, RunSpec

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress as Bar
    from rich.table import Table
    from rich.text import Text


@dataclass
class Running:
    """A run that is going on.

    Attributes:
        spec: the run.
        since: when it began, by the board's clock.
        round: the last that is over.
    """

    spec: RunSpec
    since: float
    round: int = 0

    @property
    def text(self) -> str:
        """Its method, task and seed, and how far it is."""
        rounds = self.spec.settings.get("num-server-rounds")
        return f"{title(self.spec)}  round {self.round}" + (f"/{rounds}" if rounds else "")


def title(spec: RunSpec) -> str:
    """What a run is, in a few words."""
    trial = f"  trial {spec.trial}" if spec.role == "tuning" else ""
    return clean(f"{spec.method}  {spec.task}{trial}  seed {spec.seed}")


class Board:
    """Shows how far a study is. A context manager: what it shows ends with it, whatever happened.

    Args:
        console: where to; stdout by default.
        clock: gives seconds.
    """

    def __init__(self, console: Console | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self._console, self._clock = console or make_console(), clock
        self._bar: Bar | None = None
        self._done = self._total = 0
        self._left: float | None = None
        self.running: dict[str, Running] = {}

    def __enter__(self) -> Board:
        """Begin to show it."""
        if self._console.is_interactive:
            self._bar = _bar(self._console, lambda: [each.text for each in self.running.values()])
            self._bar.add_task("runs", total=0, facts="")
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Leave the last state on the screen."""
        if self._bar is not None:
            self._bar.stop()

    def say(self, text: str) -> None:
        """Print a line."""
        plain(self._console, text)

    def began(self, spec: RunSpec) -> None:
        """A run goes on from now on."""
        self.running[spec.key] = Running(spec, self._clock())

    def round(self, key: str, number: int) -> None:
        """A run is so far.

        Args:
            key: of the run.
            number: of the round that is over.
        """
        if key in self.running:
            self.running[key].round = number

    def ended(self, spec: RunSpec, result: RunResult) -> None:
        """A run is over."""
        self.running.pop(spec.key, None)
        what = {"complete": "", "pruned": "  ended early", "failed": f"  failed: {clean(result.error)}"}[result.state]
        value = f"  validation {result.metric} {result.value:.4g}" if result.value is not None else ""
        left = f"  {duration(self._left)} left" if self._left else ""
        self.say(f"{self._done}/{self._total}  {title(spec)}{value}{what}  {result.seconds:.1f} s{left}")

    def far(self, done: int, total: int, left: float | None) -> None:
        """The study is so far.

        Args:
            done: runs that are over.
            total: runs in all, at most.
            left: seconds, about; None if that is not known.
        """
        self._done, self._total, self._left = done, total, left
        if self._bar is not None:
            facts = f"{duration(left)} left" if left is not None else ""
            self._bar.update(self._bar.task_ids[0], completed=done, total=total, facts=facts)

    def seconds(self, key: str) -> float:
        """For how long a run has been going on."""
        return self._clock() - self.running[key].since

    def spent(self) -> float:
        """Seconds that the runs now going on have taken, together."""
        now = self._clock()
        return sum(now - each.since for each in self.running.values())


def _bar(console: Console, lines: Callable[[], list[str]]) -> Bar:
    """The live display: the bar with its numbers, and a line for each run that goes on."""
    from rich import progress
    from rich.text import Text

    class WithRuns(progress.Progress):
        def get_renderables(self) -> Iterable[Table | Text]:
            yield self.make_tasks_table(self.tasks)
            for line in lines():
                yield Text(f"  {line}", no_wrap=True, overflow="ellipsis")

    return WithRuns(
        progress.SpinnerColumn(),
        progress.TextColumn("{task.description}", markup=False),
        progress.BarColumn(bar_width=None),
        progress.TextColumn("{task.completed:.0f}/{task.total:.0f}"),
        progress.TextColumn("{task.fields[facts]}", markup=False),
        console=console,
        expand=True,
        refresh_per_second=4,
    )
