"""What a reader needs to judge or repeat the runs: settings that differ, failures, versions, digests and commits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from fedham_flwr.analysis.cells import Cell, Column, Table
from fedham_flwr.analysis.collection import Collection
from fedham_flwr.analysis.facts import RunFacts
from fedham_flwr.page.html import folded, paragraph, shown
from fedham_flwr.page.sources import by_method
from fedham_flwr.settings import defaults

PLACES = ("results-dir", "resume", "cache-dir", "seed", "strategy")
"""Settings that say where files are, or stand in the tables already."""


def setting_parts(collection: Collection) -> str:
    """Settings that differ between the methods, and those of all runs that are not the default.

    Args:
        collection: the runs.
    """
    usual = defaults()
    settings = {(method, task): _common(runs) for task, method, runs in by_method(collection)}
    keys = sorted({key for found in settings.values() for key in found} - {*PLACES})
    differing = [key for key in keys if len({found.get(key, "") for found in settings.values()}) > 1]
    same = [
        key for key in keys if key not in differing and key in usual
        and next(iter(settings.values())).get(key) != _word(usual[key])
    ]  # fmt: skip
    parts = (
        [shown(_settings("settings-differ", "Settings that differ", settings, differing))]
        if differing
        else [paragraph("No setting differs between the methods, beside the strategy.")]
    )
    first = dict([next(iter(settings.items()))]) if settings else {}
    if same:
        rows = tuple((Cell(key), Cell(next(iter(first.values()))[key]), Cell(_word(usual[key]))) for key in same)
        columns = (Column("setting", "text"), Column("value", "text"), Column("default", "text"))
        parts.append(shown(Table("settings-changed", "Settings of all runs that are not the default", columns, rows)))
    return "".join(parts)


def failure_parts(collection: Collection) -> str:
    """Runs that failed or are missing, and clients that gave no usable reply.

    Args:
        collection: the runs.
    """
    columns = (
        Column("method", "text"),
        Column("task", "text"),
        Column("seed"),
        Column("role", "text"),
        Column("state", "text"),
        Column("error", "text"),
    )
    rows = tuple(
        (Cell(f.method), Cell(f.task), Cell(str(f.seed), f.seed), Cell(f.role), Cell(f.state), Cell(f.error))
        for f in collection.failures
    )
    parts = [shown(Table("failures", "Runs that failed or are missing", columns, rows))] if rows else []
    lost = tuple(
        (Cell(run.method), Cell(run.task), Cell(str(run.seed), run.seed), Cell(str(failure.round), failure.round), Cell(failure.client), Cell(failure.error))
        for run in collection.runs for record in run.rounds for failure in record.failures
    )  # fmt: skip
    if lost:
        columns = (*columns[:3], Column("round"), Column("client", "text"), Column("error", "text"))
        said = Table("lost-replies", "Clients that gave no usable reply", columns, lost[:500])
        parts.append(folded(f"{len(lost)} replies of clients were not usable", shown(said)))
    return "".join(parts) or paragraph(
        f"None: all {len(collection.runs)} runs came to their end, and no client failed."
    )


def environment_parts(collection: Collection) -> str:
    """Versions and the machine, and of each run its digest and commit.

    Args:
        collection: the runs.
    """
    told = [{k: str(v) for k, v in run.environment.items() if k != "started"} for run in collection.runs]
    keys = list(dict.fromkeys(key for each in told for key in each))
    rows = []
    for key in keys:
        values = list(dict.fromkeys(each.get(key, "–") for each in told))
        rows.append((Cell(key), Cell("; ".join(values))))
    columns = (Column("fact", "text"), Column("value", "text"))
    facts = shown(Table("environment", "Versions and machine", columns, tuple(rows)))
    columns = (
        Column("method", "text"),
        Column("task", "text"),
        Column("seed"),
        Column("digest of the results", "text"),
        Column("commit", "text"),
        Column("started", "text"),
        Column("run", "text"),
    )
    digests = tuple(
        (
            Cell(run.method), Cell(run.task), Cell(str(run.seed), run.seed), Cell(str(run.summary.get("digest", "–"))),
            Cell(str(run.environment.get("commit", "–"))), Cell(str(run.environment.get("started", "–"))),
            Cell("/".join(run.directory.parts[-2:])),
        )
        for run in collection.runs
    )  # fmt: skip
    return facts + folded(
        "Digests and commits of the runs", shown(Table("digests", "Digests and commits", columns, digests))
    )


def _common(runs: Sequence[RunFacts]) -> Mapping[str, str]:
    """Settings as text; one that differs between the seeds as all of its values."""
    keys = dict.fromkeys(key for run in runs for key in run.settings)
    return {key: " | ".join(dict.fromkeys(_word(run.settings.get(key, "")) for run in runs)) for key in keys}


def _settings(
    name: str, title: str, settings: Mapping[tuple[str, str], Mapping[str, str]], keys: Sequence[str]
) -> Table:
    several = len({task for _, task in settings}) > 1
    columns = (Column("setting", "text"), *(Column(f"{m}, {t}" if several else m, "text") for m, t in settings))
    rows = tuple((Cell(key), *(Cell(found.get(key, "–")) for found in settings.values())) for key in keys)
    return Table(name, title, columns, rows)


def _word(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return '""' if value == "" else str(value)
