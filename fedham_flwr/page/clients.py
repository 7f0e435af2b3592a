"""Each client's score in the closing evaluation: against the reference, and before against after local training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from fedham_flwr.analysis.cells import Cell, Column, Table
from fedham_flwr.analysis.client_tables import client_scores
from fedham_flwr.analysis.collection import Collection
from fedham_flwr.analysis.facts import RunFacts
from fedham_flwr.analysis.fairness import duel
from fedham_flwr.core.records import Phase
from fedham_flwr.federation.roster import order
from fedham_flwr.page.compact import shortened, thinned
from fedham_flwr.page.html import figure, folded, score, shown
from fedham_flwr.page.sources import Places, by_method, named

MOST = 45_000
"""Scores of clients in a figure, at most."""
ROWS = 200
"""Clients in the table, at most."""
APART = "Each seed deals the data anew, so that a client of one seed holds other samples than that of another."
PHASES: tuple[Phase, ...] = ("before", "after")


def client_data(collection: Collection, places: Places, share: float = 1.0) -> dict[str, Any]:
    """What the figure of clients is drawn from.

    Args:
        collection: the runs.
        places: of methods, tasks and seeds.
        share: of the clients that there is room for.
    """
    names = [_drawn(collection, task, share) for task in collection.tasks]
    scores = []
    for run in collection.runs:
        found = {phase: run.per_client(phase, collection.split, _metric(collection, run)) for phase in PHASES}
        who = names[places.tasks.index(run.task)]
        kept = {phase: shortened(values.get(client) for client in who) for phase, values in found.items() if values}
        scores.append(places.at(run) | {"own": run.phase} | kept)
    against = [collection.reference] if _compares(collection) else []
    both = any("before" in score and "after" in score for score in scores)
    against += ["before"] if both or not against else []
    return {
        "names": names,
        "scores": scores,
        "against": against,
        "reference": collection.reference,
        "apart": _apart(collection),
    }


def client_parts(collection: Collection, share: float = 1.0) -> str:
    """The figure of clients, and its numbers.

    Args:
        collection: the runs.
        share: of the clients that there is room for.
    """
    sentences, tables = [], []
    for task in collection.tasks:
        sentences += _findings(collection, task)
        tables.append(shown(_table(collection, task, share)))
        count, drawn = len(_clients(collection, task)), len(_drawn(collection, task, share))
        sentences += [f"Of {count} clients {drawn} are drawn, spread evenly over their ids."] if drawn < count else []
    label = f"Each client's {collection.split} score with a method, against another"
    sentences += [APART] if _apart(collection) else []
    how = "A point above the diagonal is a client with a higher score by the method than by what it is compared with."
    return figure("clients-figure", label, " ".join([*sentences, how])) + folded("The clients as a table", *tables)


def means(collection: Collection, runs: Sequence[RunFacts]) -> Mapping[str, float]:
    """Client -> mean over seeds of its score by the model that the method stands for.

    Args:
        collection: the runs.
        runs: of one method and task.
    """
    found: dict[str, list[float]] = {}
    for run in runs:
        for client, value in run.per_client("", collection.split, _metric(collection, run)).items():
            found.setdefault(client, []).append(value)
    return {client: fmean(values) for client, values in found.items()}


def _compares(collection: Collection) -> bool:
    return bool(collection.reference) and len(collection.methods) > 1


def _metric(collection: Collection, run: RunFacts) -> str:
    return collection.metrics[run.task].name


def _clients(collection: Collection, task: str) -> list[str]:
    runs = [run for run in collection.runs if run.task == task]
    return list(
        order({client for run in runs for client in run.per_client("", collection.split, _metric(collection, run))})
    )


def _drawn(collection: Collection, task: str, share: float) -> list[str]:
    all_clients = _clients(collection, task)
    return [
        all_clients[at]
        for at in thinned(len(all_clients), max(20, int(MOST * share) // (2 * max(1, len(collection.runs)))))
    ]


def _findings(collection: Collection, task: str) -> list[str]:
    """How many clients each method serves better and worse than the reference, counted as in the table of clients."""
    if not _compares(collection):
        return []
    reference, said = collection.of(collection.reference, task), []
    for found, method, runs in by_method(collection):
        seeds = {run.seed for run in runs} & set(reference)
        if found == task and method != collection.reference and seeds:
            ours, theirs = (client_scores(collection, each, task, seeds) for each in (method, collection.reference))
            won, tied, lost = duel(ours, theirs, collection.metrics[task].higher)
            said.append(f"{method} {won} better, {lost} worse of {won + tied + lost}")
    return [named(collection, task, f"Clients against {collection.reference}: {'; '.join(said)}") + "."] if said else []


def _apart(collection: Collection) -> bool:
    """Whether a client of one seed is not that of another, since each seed deals the data anew."""
    return any(run.data_seed < 0 for run in collection.runs) and len({run.seed for run in collection.runs}) > 1


def _table(collection: Collection, task: str, share: float) -> Table:
    """A client in a row, a method in a column."""
    of = {method: means(collection, runs) for found, method, runs in by_method(collection) if found == task}
    metric, who = collection.metrics[task], _clients(collection, task)
    places = thinned(len(who), max(20, int(ROWS * share)))
    rows = tuple((Cell(who[at]), *(score(values.get(who[at]), metric) for values in of.values())) for at in places)
    title = f"{collection.split} {metric.name} of each client, mean over seeds"
    notes = [f"{len(rows)} of {len(who)} clients, spread evenly over their ids."] if len(rows) < len(who) else []
    notes += [APART] if _apart(collection) else []
    columns = (Column("client", "text"), *(Column(method, unit="%" if metric.bounded else "") for method in of))
    return Table(
        f"each-client-{collection.tasks.index(task)}", named(collection, task, title), columns, rows, tuple(notes)
    )
