"""Published figures beside ours: what a file NAME.toml says, what runs have given, and the tables of both."""

from __future__ import annotations

import json
import statistics
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
OUTCOMES = HERE / "outcomes"


def read(name: str) -> dict[str, Any]:
    """A setting and its published figures.

    Args:
        name: of the file, without its ending.
    """
    return tomllib.loads((HERE / f"{name}.toml").read_text(encoding="utf-8"))


def names() -> list[str]:
    """All settings, in the order of their files' `order`."""
    return sorted((file.stem for file in HERE.glob("*.toml")), key=lambda n: read(n)["order"])


def points(entry: Mapping[str, Any]) -> list[tuple[Mapping[str, Any], int, Any]]:
    """Every published number: its figure, the round that it is after, and the number, or those of several seeds."""
    return [
        (figure, after, value)
        for figure in entry["figure"]
        for after, value in zip(figure["after"], figure["published"], strict=True)
    ]


def ours(rows: Any, figure: Mapping[str, Any], after: int) -> float:
    """The number of a run that stands beside a published one; accuracy in per cent.

    Args:
        rows: the run's, of all clients.
        figure: `line` is a model and a phase, `mean` is weighted (by test samples), plain or the name of a client,
            `later` is how many rounds later this project scores what the source scores.
        after: the round.
    """
    model, phase = figure["line"].split()
    metric, number = figure.get("metric", "accuracy"), after + figure.get("later", 0)
    chosen = rows[
        (rows["metric"] == metric)
        & (rows["split"] == "test")
        & (rows["model"] == model)
        & (rows["phase"] == phase)
        & (rows["round"] == number)
    ]
    if figure["mean"] == "weighted":
        value = (chosen["value"] * chosen["n"]).sum() / chosen["n"].sum()
    else:
        value = (chosen if figure["mean"] == "plain" else chosen[chosen["client"] == figure["mean"]])["value"].mean()
    return round(float(value) * (100 if metric == "accuracy" else 1), 4)


def outcome(name: str) -> dict[str, Any] | None:
    """What was kept of the runs of a setting; None if there were none."""
    file = OUTCOMES / f"{name}.json"
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None


def spread(values: float | Sequence[float], digits: int) -> str:
    """Mean, standard deviation and number of seeds; of a single number the number."""
    values = [values] if isinstance(values, int | float) else values
    mean = f"{statistics.fmean(values):.{digits}f}"
    return f"{mean} ± {statistics.stdev(values):.{digits}f} ({len(values)})" if len(values) > 1 else mean


def compared(entry: Mapping[str, Any], found: Mapping[str, Any]) -> list[list[str]]:
    """A row for each published number: what, after which round, published, here, the distance of the means."""
    lines = []
    for (figure, after, published), here in zip(points(entry), found["here"], strict=True):
        digits = 1 if figure.get("metric", "accuracy") == "accuracy" else 3
        theirs = published if isinstance(published, list) else [published]
        apart = round(statistics.fmean(here) - statistics.fmean(theirs), digits) + 0.0  # no -0.0
        given = spread(published, digits) + (f" ± {figure['std']}" if "std" in figure else "")
        lines.append([figure["what"], str(after), given, spread(here, digits), f"{apart:+.{digits}f}"])
    return lines


def table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    return "\n".join(f"| {' | '.join(line)} |" for line in (head, ["---"] * len(head), *lines))


def summary() -> str:
    """A line for each setting: its method, source, and its last published number of each kind beside ours."""
    lines = []
    for name in names():
        entry, found = read(name), outcome(name)
        if found is not None:
            last = compared(entry, found)[entry.get("shown", -1)]
            pages = ", ".join(f"[`{method}`](methods/{method}.md)" for method in entry["methods"])
            link = f"[{entry['title']}](#{anchor(entry['title'])})"
            lines.append([pages, link, *last])
    return table(["method", "setting", "figure", "after round", "published", "here", "distance"], lines)


def anchor(title: str) -> str:
    """Of a heading."""
    return "".join(c for c in title.lower() if c.isalnum() or c in " -_").replace(" ", "-")


def section(name: str) -> str:
    """All numbers of a setting, with its source and what is to be said of the distance; empty without an outcome."""
    entry, found = read(name), outcome(name)
    if found is None:
        return ""
    lines = compared(entry, found)
    seeds = ", ".join(map(str, found["seeds"]))
    return "\n\n".join(
        [
            f"### {entry['title']}",
            f"{entry['source']} Setting: {entry['setting']}",
            table(["figure", "after round", "published", "here", "distance"], lines),
            f"{entry['remark']} [`{name}.toml`](../benchmarks/published/{name}.toml); seeds here: {seeds}.",
        ]
    )


def page() -> str:
    """All that docs/published.md says in numbers."""
    waiting = [f"[`{name}`](../benchmarks/published/{name}.toml)" for name in names() if outcome(name) is None]
    rest = [f"There, and not run yet: {', '.join(waiting)}."] if waiting else []
    return "\n\n".join([summary(), *filter(None, map(section, names())), *rest])
