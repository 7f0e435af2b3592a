"""What the person at the terminal sees: the settings, the data, a line per round, and the result.

In a terminal a progress bar lives at the bottom; anywhere else (a file, a pipe, a service's log) the same facts are
plain lines without control codes. Everything goes to stdout; errors of clients are cleaned of control characters,
since they come from other machines.
"""

import io
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from statistics import median
from types import TracebackType
from typing import TYPE_CHECKING

from fedham_flwr.core.records import MEMBER, NOVEL, Failure, Row
from fedham_flwr.training.metrics import ACCURACY, Metric

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress as Bar
    from rich.table import Table

_PLAIN_WIDTH = 120
_MOST_CLIENTS = 20  # listed one by one
_MOST_ERRORS = 10  # different ones, printed of one round
_MOST_NAMES = 5  # of clients behind one error
_RECENT = 10  # rounds behind the estimate of the time left


def make_console() -> "Console":
    """A console on stdout; away from a terminal 120 columns wide, where rich would assume 80."""
    from rich.console import Console

    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a client's name must not end a run whose log is ASCII
    console = Console()
    return console if console.is_terminal else Console(width=_PLAIN_WIDTH)


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
        Its mean on the test split over clients under `<model> <phase>`, then `cohort`, `replies` and `seconds`.
    """
    groups: dict[str, list[float]] = defaultdict(list)
    for row in rows:
        if row.split == "test" and row.metric == metric.name:
            groups[f"{row.model} {row.phase}"].append(row.value)
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
            _plain(self._console, f"round {number}/{self._total}  {self._line(line_values)}")
            return
        recent = self._durations[-_RECENT:]
        each = sum(recent) / len(recent)
        left = _duration(each * max(0, self._total - number))
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
        _plain(self._console, f"{name}  {self._line(line_values)}")

    def _line(self, values: Mapping[str, float]) -> str:
        """One line of a round: scores, replies, seconds; what is not known is left out."""
        scores = {name: value for name, value in values.items() if name not in ("cohort", "replies", "seconds")}
        named = "" if self._metric == ACCURACY or not scores else f"{self._metric.name}  "
        parts = [f"{name} {_number(value, self._metric)}" for name, value in scores.items()]
        if "cohort" in values and "replies" in values:
            parts.append(f"{values['replies']:.0f} of {values['cohort']:.0f} clients")
        if "seconds" in values:
            parts.append(f"{values['seconds']:.1f} s")
        return named + "  ".join(parts)

    def failed(self, failures: Sequence[Failure]) -> None:
        """Print a line for each different error among the failures of an exchange, and count them in the bar."""
        groups: dict[tuple[int, str, str], list[str]] = defaultdict(list)
        for failure in failures:
            groups[failure.round, failure.stage, _clean(failure.error)].append(_clean(failure.client))
        for (number, stage, error), clients in list(groups.items())[:_MOST_ERRORS]:
            _plain(self._console, f"round {number}  {_who(clients)} failed in {stage}: {error}", style="red")
        if len(groups) > _MOST_ERRORS:
            _plain(self._console, f"and {len(groups) - _MOST_ERRORS} more errors, in rounds.jsonl", style="red")
        self._failures += len(failures)
        if self._bar is not None and self._failures:
            self._bar.update(self._bar.task_ids[0], failures=f"{self._failures} failed")


def settings_table(
    settings: Mapping[str, bool | int | float | str],
    defaults: Mapping[str, bool | int | float | str],
    console: "Console | None" = None,
) -> None:
    """Print all settings in as many columns as fit, with a star before those that differ from their default."""
    console = console or make_console()
    changed = {name for name, value in settings.items() if name not in defaults or defaults[name] != value}
    entries = {name: f"{'*' if name in changed else ' '} {name} = {_value(settings[name])}" for name in settings}
    long = {name for name, entry in entries.items() if len(entry) > 38}
    _plain(console, "settings (* differs from the default)")
    short = [name for name in entries if name not in long]
    width = max((len(entries[name]) for name in short), default=0) + 2
    columns = max(1, console.width // width)
    height = -(-len(short) // columns)
    for start in range(height):
        _settings_line(console, {name: entries[name] for name in short[start::height]}, changed, width)
    for name in sorted(long, key=list(entries).index):
        _settings_line(console, {name: entries[name]}, changed, 0)


def data_table(clients: Sequence[Mapping[str, object]], console: "Console | None" = None) -> None:
    """Print who has how many samples.

    Args:
        clients: Of each client its `client` id, the `name` of its data if it has one, its samples in `train`,
            `validation` and `test`, and its number of `classes`, if it has such. More than 20 clients are summed up.
        console: Where to print; stdout by default.
    """
    from rich.text import Text

    console = console or make_console()
    names = ["train", "validation", "test"]
    names += ["classes"] if any("classes" in client for client in clients) else []
    summed = len(clients) > _MOST_CLIENTS
    table = _table(f"{len(clients)} clients" if summed else "client", *names)
    numbers = {name: [int(str(client[name])) for client in clients] for name in names}
    if summed:
        # Classes are shared between clients, so that their sum means nothing.
        table.add_row("total", *(str(sum(numbers[name])) if name != "classes" else "-" for name in names))
        for title, statistic in (("min", min), ("median", median), ("max", max)):
            table.add_row(title, *(f"{statistic(numbers[name]):.12g}" for name in names))
    else:
        for at, client in enumerate(clients):
            table.add_row(Text(_client(client)), *(str(numbers[name][at]) for name in names))
    _print_table(console, table)


def _client(client: Mapping[str, object]) -> str:
    """Its id, and the name of its data where that says more."""
    who, name = _clean(str(client["client"])), _clean(str(client.get("name", "")))
    return who if name in ("", who) else f"{who} ({name})"


def final_table(
    summary: Mapping[str, Sequence[Mapping[str, object]]],
    console: "Console | None" = None,
    metric: Metric = ACCURACY,
) -> None:
    """Print the test scores of a summary: of the last round, and of the round chosen on validation.

    Args:
        summary: With the lists `final` and `selected`, as `results` makes them.
        console: Where to print; stdout by default.
        metric: That is shown.
    """
    console = console or make_console()
    entries = [{**entry, "chosen-on": "last round"} for entry in summary.get("final", [])]
    # Where validation could not choose, the last round stands above already.
    entries += [dict(entry) for entry in summary.get("selected", []) if entry["chosen-on"] != "last round"]
    shown = [entry for entry in entries if entry["split"] == "test" and entry["metric"] == metric.name]
    if not shown:
        _plain(console, f"no test {metric.name} was measured")
        return
    table = _table(
        f"test {metric.name}", "model", "phase", "mean", "weighted\nmean", "std", "worst\n10 %", "clients", "round"
    )
    for entry in shown:
        novel = entry.get("population", MEMBER) == NOVEL
        words = [
            "novel clients" if novel else str(entry["chosen-on"]),
            *(str(entry[name]) for name in ("model", "phase")),
        ]
        numbers = [_number(entry[name], metric) for name in ("mean", "weighted-mean", "std", "worst-decile")]
        table.add_row(*words, *numbers, str(entry["clients"]), str(entry["round"]))
    _print_table(console, table)


def say(text: str, console: "Console | None" = None) -> None:
    """Print a line.

    Args:
        text: The line.
        console: Where to print; stdout by default.
    """
    _plain(console or make_console(), text)


def last_line(path: Path, console: "Console | None" = None) -> None:
    """Print where the results are.

    Args:
        path: The run's directory.
        console: Where to print; stdout by default.
    """
    say(f"results: {path.absolute()}", console)


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


def _clean(text: str) -> str:
    """The first line, without characters that could steer a terminal."""
    first = text.strip().partition("\n")[0]
    return "".join(character if character.isprintable() else " " for character in first).strip()


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def _value(value: bool | int | float | str) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return str(value) if value != "" else '""'


def _number(value: object, metric: Metric) -> str:
    """Three decimals of a fraction, four digits of what may be of any size."""
    if not isinstance(value, int | float):
        return "-"
    return f"{value:.3f}" if metric.bounded else f"{value:#.4g}".rstrip(".")


def _plain(console: "Console", text: str, style: str | None = None) -> None:
    """Print text as it is: no markup, no wrapping, no guessed colours."""
    from rich.text import Text

    # A style given to print itself would also colour the bar that is drawn again below the text.
    console.print(Text(text, style=style or ""), soft_wrap=True)


def _settings_line(console: "Console", entries: Mapping[str, str], changed: set[str], width: int) -> None:
    from rich.text import Text

    line = Text()
    for name, entry in entries.items():
        line.append(entry.ljust(width), style="bold" if name in changed else "")
    line.rstrip()
    console.print(line, soft_wrap=True)


def _print_table(console: "Console", table: "Table") -> None:
    """Print a table with an empty line on both sides."""
    console.print()
    console.print(table)
    console.print()


def _table(*columns: str) -> "Table":
    """An empty table: words to the left, numbers to the right, a rule below the headings."""
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0), show_edge=False)
    for at, column in enumerate(columns):
        words = at == 0 or column in ("model", "phase")
        table.add_column(column, justify="left" if words else "right", no_wrap=True)
    return table
