"""What a reader needs to judge or repeat the runs: settings, replies that were lost, versions, digests and commits."""

from __future__ import annotations

from fedham_flwr.analysis.cells import Cell, Column, Table
from fedham_flwr.analysis.collection import Collection
from fedham_flwr.analysis.labels import value_text
from fedham_flwr.page.html import folded, paragraph, shown
from fedham_flwr.settings import defaults

PLACES = ("results-dir", "resume", "cache-dir", "seed", "strategy")
"""Settings that say where files are, or stand in the tables already."""
MOST = 300
"""Lost replies that are listed, at most."""


def setting_parts(collection: Collection) -> str:
    """The settings that all runs have in common and that are not the default.

    Args:
        collection: the runs.
    """
    usual, first = defaults(), collection.runs[0].settings if collection.runs else {}
    rows = tuple(
        (Cell(key), Cell(value_text(value)), Cell(value_text(usual[key])))
        for key, value in first.items()
        if key in usual and key not in PLACES and value != usual[key]
        if all(run.settings.get(key) == value for run in collection.runs)
    )
    columns = (Column("setting", "text"), Column("value", "text"), Column("default", "text"))
    title = "Settings of all runs that are not the default"
    return shown(Table("settings-changed", title, columns, rows)) if rows else ""


def failure_parts(collection: Collection) -> str:
    """Replies of clients that were of no use, or that there are none.

    Args:
        collection: the runs.
    """
    lost = [(run, failure) for run in collection.runs for record in run.rounds for failure in record.failures]
    if not lost:
        return "" if collection.failures else paragraph(f"All {len(collection.runs)} runs ended, and no client failed.")
    columns = (
        Column("method", "text"), Column("task", "text"), Column("seed"), Column("round"), Column("client", "text"),
        Column("why", "text"),
    )  # fmt: skip
    rows = tuple(
        (Cell(run.method), Cell(run.task), _whole(run.seed), _whole(failure.round), Cell(failure.client),
         Cell(failure.error))
        for run, failure in lost[:MOST]
    )  # fmt: skip
    notes = (f"The first {MOST} of {len(lost)}; all are in rounds.jsonl of a run.",) if len(lost) > MOST else ()
    table = Table("lost-replies", "Replies of clients that were of no use", columns, rows, notes)
    return folded(f"{len(lost)} replies of clients were of no use", shown(table))


def environment_parts(collection: Collection) -> str:
    """Versions and the machine, and of each run its whole digest and commit.

    Args:
        collection: the runs.
    """
    told = [
        {k: str(v) for k, v in run.environment.items() if k not in ("started", "commit")} for run in collection.runs
    ]
    keys = dict.fromkeys(key for each in told for key in each)
    rows = tuple((Cell(key), Cell("; ".join(dict.fromkeys(each.get(key, "–") for each in told)))) for key in keys)
    columns = (Column("fact", "text"), Column("value", "text"))
    facts = shown(Table("environment", "Versions and machine", columns, rows)) if rows else ""
    return facts + folded("Whole digests and commits", shown(_digests(collection)))


def _digests(collection: Collection) -> Table:
    columns = (
        Column("method", "text"), Column("task", "text"), Column("seed"), Column("digest", "text"),
        Column("commit", "text"), Column("started", "text"),
    )  # fmt: skip
    rows = tuple(
        (Cell(run.method), Cell(run.task), _whole(run.seed), Cell(str(run.summary.get("digest", "–"))),
         Cell(str(run.environment.get("commit", "–"))), Cell(str(run.environment.get("started", "–"))))
        for run in collection.runs
    )  # fmt: skip
    return Table("digests", "Digests of results and commits of the code", columns, rows)


def _whole(number: int) -> Cell:
    return Cell(str(number), number)
