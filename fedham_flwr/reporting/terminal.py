"""What the person at the terminal sees beside the rounds: the settings, the data, and the result.

Everything goes to stdout; names of clients are cleaned of control characters, since they come from other machines.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from fedham_flwr.core.records import MEMBER, NOVEL
from fedham_flwr.reporting.console import clean, empty_table, make_console, number_text, plain, print_table
from fedham_flwr.training.metrics import ACCURACY, Metric

if TYPE_CHECKING:
    from rich.console import Console

_MOST_CLIENTS = 20  # listed one by one


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
    plain(console, "settings (* differs from the default)")
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
    table = empty_table(f"{len(clients)} clients" if summed else "client", *names)
    numbers = {name: [int(str(client[name])) for client in clients] for name in names}
    if summed:
        # Classes are shared between clients, so that their sum means nothing.
        table.add_row("total", *(str(sum(numbers[name])) if name != "classes" else "-" for name in names))
        for title, statistic in (("min", min), ("median", median), ("max", max)):
            table.add_row(title, *(f"{statistic(numbers[name]):.12g}" for name in names))
    else:
        for at, client in enumerate(clients):
            table.add_row(Text(client_name(client)), *(str(numbers[name][at]) for name in names))
    print_table(console, table)


def client_name(client: Mapping[str, object]) -> str:
    """Its id, and the name of its data where that says more."""
    who, name = clean(str(client["client"])), clean(str(client.get("name", "")))
    return who if name in ("", who) else f"{who} ({name})"


def final_table(
    summary: Mapping[str, Any],
    console: "Console | None" = None,
    metric: Metric = ACCURACY,
) -> None:
    """Print the scores of a summary on the test split: of the last round, and of the round chosen on validation.

    Where the test split was never scored, those on the validation split are shown. The lines of the model that the
    exported files hold come first, and it is said which these are.

    Args:
        summary: With the lists `final` and `selected`, as `results` makes them, and `exported`, if files were written.
        console: Where to print; stdout by default.
        metric: That is shown.
    """
    console = console or make_console()
    entries = [{**entry, "chosen-on": "last round"} for entry in summary.get("final", [])]
    # Where validation could not choose, the last round stands above already.
    entries += [dict(entry) for entry in summary.get("selected", []) if entry["chosen-on"] != "last round"]
    entries = [entry for entry in entries if entry["metric"] == metric.name]
    there = {entry["split"] for entry in entries}
    split = "validation" if "validation" in there and "test" not in there else "test"
    shown = [entry for entry in entries if entry["split"] == split]
    of_files: Mapping[str, object] = summary.get("exported", {})
    groups = list(dict.fromkeys(_line_title(entry) for entry in shown))
    shown.sort(key=lambda e: (groups.index(_line_title(e)), any(e[name] != of_files[name] for name in of_files)))
    if not shown:
        plain(console, f"no test {metric.name} was measured")
        return
    table = empty_table(
        f"{split} {metric.name}", "model", "phase", "mean", "weighted\nmean", "std", "worst\n10 %", "clients", "round"
    )
    for entry in shown:
        words = [_line_title(entry), str(entry["model"]), str(entry["phase"])]
        numbers = [number_text(entry[name], metric) for name in ("mean", "weighted-mean", "std", "worst-decile")]
        table.add_row(*words, *numbers, str(entry["clients"]), str(entry["round"]))
    print_table(console, table)
    if untested := _untested(entries) if split == "test" else "":
        plain(console, f"chosen on validation, but not scored on the test split: {untested}")
    if of_files:
        plain(
            console,
            f"model/*.safetensors are the models of the line: last round  {' '.join(map(str, of_files.values()))}",
        )


def _untested(entries: Sequence[Mapping[str, object]]) -> str:
    """What validation chose that has no score on the test split."""
    chosen = [entry for entry in entries if entry["chosen-on"] != "last round"]
    names = {split: [_series(entry) for entry in chosen if entry["split"] == split] for split in ("validation", "test")}
    return ", ".join(name for name in names["validation"] if name not in names["test"])


def _series(entry: Mapping[str, object]) -> str:
    return f"{entry['model']} {entry['phase']} of round {entry['round']}"


def _line_title(entry: Mapping[str, object]) -> str:
    """What a line of the table is of."""
    return "novel clients" if entry.get("population", MEMBER) == NOVEL else str(entry["chosen-on"])


def say(text: str, console: "Console | None" = None) -> None:
    """Print a line.

    Args:
        text: The line.
        console: Where to print; stdout by default.
    """
    plain(console or make_console(), text)


def engine_line(told: Mapping[str, object]) -> str:
    """How the clients of a cohort were trained and scored, in a line."""
    alone = told.get("alone")
    apart = sum(alone.values()) if isinstance(alone, dict) else 0
    why = f" ({told['why-alone']})" if "why-alone" in told else ""
    return f"cohort  {told.get('together', 0):,} requests carried out together, {apart:,} one at a time{why}"


def workers_line(plan: str, size: int) -> str:
    """What trains the clients, and how many at once, in a line.

    Args:
        plan: the workers.
        size: of a model's parameters in bytes.
    """
    from fedham_flwr.training.engine.memory import block

    at_once = block(size)
    return f"workers  {plan}, up to {at_once} clients at a time ({3 * at_once * size / 1e6:,.1f} MB)"


def last_line(path: Path, console: "Console | None" = None) -> None:
    """Print where the results are.

    Args:
        path: The run's directory.
        console: Where to print; stdout by default.
    """
    say(f"results: {path.absolute()}", console)


def _value(value: bool | int | float | str) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return str(value) if value != "" else '""'


def _settings_line(console: "Console", entries: Mapping[str, str], changed: set[str], width: int) -> None:
    from rich.text import Text

    line = Text()
    for name, entry in entries.items():
        line.append(entry.ljust(width), style="bold" if name in changed else "")
    line.rstrip()
    console.print(line, soft_wrap=True)
