"""Lines and tables on stdout: text as it is, without markup or control characters, in a terminal or anywhere else."""

import io
import sys
from typing import TYPE_CHECKING

from fedham_flwr.training.metrics import Metric

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table


_PLAIN_WIDTH = 120


def make_console() -> "Console":
    """A console on stdout; away from a terminal 120 columns wide, where rich would assume 80."""
    from rich.console import Console

    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a client's name must not end a run whose log is ASCII
    console = Console(force_jupyter=False)  # in a notebook rich would pass by stdout, which `verbose=False` closes
    return console if console.is_terminal else Console(width=_PLAIN_WIDTH, force_jupyter=False)


def clean(text: str) -> str:
    """The first line, without characters that could steer a terminal."""
    first = text.strip().partition("\n")[0]
    return "".join(character if character.isprintable() else " " for character in first).strip()


def number_text(value: object, metric: Metric) -> str:
    """Three decimals of a fraction, four digits of what may be of any size."""
    if not isinstance(value, int | float):
        return "-"
    return f"{value:.3f}" if metric.bounded else f"{value:#.4g}".rstrip(".")


def plain(console: "Console", text: str, style: str | None = None) -> None:
    """Print text as it is: no markup, no wrapping, no guessed colours."""
    from rich.text import Text

    # A style given to print itself would also colour the bar that is drawn again below the text.
    console.print(Text(text, style=style or ""), soft_wrap=True)


def print_table(console: "Console", table: "Table") -> None:
    """Print a table with an empty line on both sides."""
    console.print()
    console.print(table)
    console.print()


def empty_table(*columns: str) -> "Table":
    """An empty table: words to the left, numbers to the right, a rule below the headings."""
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0), show_edge=False)
    for at, column in enumerate(columns):
        words = at == 0 or column in ("model", "phase")
        table.add_column(column, justify="left" if words else "right", no_wrap=True)
    return table


def duration(seconds: float) -> str:
    """Hours, minutes and seconds: 1:02:03, or 2:03."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
