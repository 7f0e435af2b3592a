"""The rounds as they end: a bar in a terminal, lines anywhere else.

In a terminal a progress bar lives at the bottom; anywhere else (a file, a pipe, a service's log) the same facts are
plain lines without control codes. Errors of clients are cleaned of control characters, since they come from other
machines.
"""

import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING

from fedham_flwr.core.records import Failure, Row
from fedham_flwr.reporting.console import clean, duration, make_console, number_text, plain
from fedham_flwr.reporting.shown import split_shown
from fedham_flwr.training.metrics import ACCURACY, Metric

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress as Bar
    from rich.table import Table

_MOST_ERRORS = 10  # different ones, printed of one round
_MOST_NAMES = 5  # of clients behind one error
_RECENT = 10  # rounds behind the estimate of the time left


def line_values(
    rows: Iterable[Row], cohort: int, replies: int, seconds: float, metric: Metric = ACCURACY
) -> dict[str, float]:
    """What `Progress.round` shows of one round.

    Args:
        rows: The rows of this round; those of other rounds would be averaged in.
        cohort: Clients asked.
        replies: Clients that gave a usable reply.
        seconds: Duration of the round.
        metric: That is shown.

    Returns:
        Its mean over clients on the test split under `<model> <phase>`, or on the validation split under
        `validation <model> <phase>` where the test split was not scored; then `cohort`, `replies` and `seconds`.
    """
    groups: dict[str, list[float]] = defaultdict(list)
    found = [row for row in rows if row.metric == metric.name]
    split = split_shown(found, metric)
    for row in found:
        if row.split == split:
            groups[f"{'' if split == 'test' else f'{split} '}{row.model} {row.phase}"].append(row.value)
    means = {name: sum(groups[name]) / len(groups[name]) for name in sorted(groups)}
    return means | {"cohort": cohort, "replies": replies, "seconds": seconds}


class Progress:
    """Shows the rounds as they end, as a bar or as lines.

    Use it as a context manager around the rounds; leaving it stops the bar, whatever happened.
    """

    def __init__(
        self,
        total_rounds: int,
        strategy: str,
        console: "Console | None" = None,
        clock: Callable[[], float] = time.monotonic,
        metric: Metric = ACCURACY,
    ) -> None:
        """Prepare; nothing is shown before the context is entered.

        Args:
            total_rounds: Number of the last round.
            strategy: Name to show.
            console: Where to write; stdout by default.
            clock: Gives seconds; replaced in tests.
            metric: That is shown.
        """
        self._metric = metric
        self._total = total_rounds
        self._strategy = strategy
        self._console = console or make_console()
        self._clock = clock
        self._last = 0.0
        self._durations: list[float] = []
        self._failures = 0
        self._bar: Bar | None = None

    def __enter__(self) -> "Progress":
        """Start the clock and, in a terminal, the bar."""
        self._last = self._clock()
        if self._console.is_interactive:
            self._bar = _bar(self._console)
            self._bar.add_task(self._strategy, total=self._total, facts="", values="", failures="")
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop the bar; the last state stays on the screen."""
        if self._bar is not None:
            self._bar.stop()

    def round(self, number: int, line_values: Mapping[str, float]) -> None:
        """Show that round `number` has ended.

        Args:
            number: The round, from 1; a resumed run starts higher.
            line_values: As `line_values` returns them; `cohort`, `replies` and `seconds` may be absent.
        """
        now = self._clock()
        self._durations.append(now - self._last)
        self._last = now
        if self._bar is None:
            plain(self._console, f"round {number}/{self._total}  {self._line(line_values)}")
            return
        recent = self._durations[-_RECENT:]
        each = sum(recent) / len(recent)
        left = duration(each * max(0, self._total - number))
        self._bar.update(
            self._bar.task_ids[0],
            completed=number,
            facts=f"{each:.1f} s/round  {left} left",
            values=self._line({name: value for name, value in line_values.items() if name != "seconds"}),
        )
        self._bar.refresh()

    def stage(self, name: str, line_values: Mapping[str, float]) -> None:
        """Print a line for a stage that is no round.

        Args:
            name: What to call it.
            line_values: As for `round`.
        """
        plain(self._console, f"{name}  {self._line(line_values)}")

    def note(self, text: str) -> None:
        """Print a line of its own."""
        plain(self._console, text)

    def _line(self, values: Mapping[str, float]) -> str:
        """One line of a round: scores, replies, seconds; what is not known is left out."""
        scores = {name: value for name, value in values.items() if name not in ("cohort", "replies", "seconds")}
        named = "" if self._metric == ACCURACY or not scores else f"{self._metric.name}  "
        parts = [f"{name} {number_text(value, self._metric)}" for name, value in scores.items()]
        if "cohort" in values and "replies" in values:
            parts.append(f"{values['replies']:.0f} of {values['cohort']:.0f} clients")
        if "seconds" in values:
            parts.append(f"{values['seconds']:.1f} s")
        return named + "  ".join(parts)

    def failed(self, failures: Sequence[Failure]) -> None:
        """Print a line for each different error among the failures of an exchange, and count them in the bar."""
        groups: dict[tuple[int, str, str], list[str]] = defaultdict(list)
        for failure in failures:
            groups[failure.round, failure.stage, clean(failure.error)].append(clean(failure.client))
        for (number, stage, error), clients in list(groups.items())[:_MOST_ERRORS]:
            plain(self._console, f"round {number}  {_who(clients)} failed in {stage}: {error}", style="red")
        if len(groups) > _MOST_ERRORS:
            plain(self._console, f"and {len(groups) - _MOST_ERRORS} more errors, in rounds.jsonl", style="red")
        self._failures += len(failures)
        if self._bar is not None and self._failures:
            self._bar.update(self._bar.task_ids[0], failures=f"{self._failures} failed")


def _bar(console: "Console") -> "Bar":
    """The live display: the bar with its numbers on one line, the latest scores below it."""
    from rich import progress
    from rich.text import Text

    class TwoLines(progress.Progress):
        def get_renderables(self) -> Iterable["Table | Text"]:
            yield self.make_tasks_table(self.tasks)
            for task in self.tasks:
                if task.fields["values"]:
                    yield Text(task.fields["values"], no_wrap=False, overflow="fold")

    return TwoLines(
        progress.SpinnerColumn(),
        progress.TextColumn("{task.description}", markup=False),
        progress.BarColumn(bar_width=None),
        progress.TextColumn("round {task.completed:.0f}/{task.total:.0f}"),
        progress.TextColumn("{task.fields[facts]}", markup=False),
        progress.TextColumn("{task.fields[failures]}", style="bold red", markup=False),
        console=console,
        expand=True,
        refresh_per_second=4,
    )


def _who(clients: Sequence[str]) -> str:
    if len(clients) == 1:
        return f"client {clients[0]}"
    more = ", ..." if len(clients) > _MOST_NAMES else ""
    return f"{len(clients)} clients ({', '.join(clients[:_MOST_NAMES])}{more})"
