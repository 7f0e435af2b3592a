"""The table of clients: who is better off than without a federation, and how even the scores are."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from fedham_flwr.analysis.cells import Cell, Column, Table
from fedham_flwr.analysis.collection import Collection
from fedham_flwr.analysis.facts import RunFacts
from fedham_flwr.analysis.fairness import Duel, duel, gini, jain, sign_test
from fedham_flwr.analysis.numbers import EMPTY, averaged, count, probability
from fedham_flwr.analysis.rows import method_cell, task_cells, task_columns, unit_of, with_unit

Scores = Mapping[Any, float]
"""Client, or seed and client -> its score."""


def clients(collection: Collection) -> Table:
    """Clients won, tied and lost against the first floor, worst tenth, spread and fairness.

    Args:
        collection: the runs.
    """
    other = opponent(collection)
    unit = unit_of(collection)
    against = [
        Column("won", help=f"clients that are better off than with {other}"),
        Column("tied", help="clients with the same score"),
        Column("lost", help=f"clients that are worse off than with {other}"),
        Column("p, sign test", help="exact, of won against lost; clients are taken as independent; not adjusted"),
    ]
    columns = [
        Column("method", "text"),
        *task_columns(collection),
        *(against if other else []),
        Column("worst tenth", help="mean of the worst tenth of the clients, mean over seeds", unit=unit),
        Column("std", help="over clients, divided by their number, mean over seeds", unit=unit),
        Column("Jain", help="Jain's index of the clients' scores, 1 if all are equal, mean over seeds"),
        Column("Gini", help="Gini's coefficient of the clients' scores, 0 if all are equal, mean over seeds"),
        Column("clients", help="that were scored, in the first seed"),
    ]
    rows = [
        (method_cell(collection, method), *task_cells(collection, task), *_row(collection, method, task, other))
        for task in collection.tasks
        for method in collection.methods
        if collection.of(method, task)
    ]
    title = f"Clients: {collection.split} scores of each client's own model at the end"
    return Table("clients", title, tuple(columns), tuple(rows), tuple(_notes(collection, other)))


def opponent(collection: Collection) -> str:
    """The method that clients are won from: the first floor, or the reference; empty of a single method.

    Args:
        collection: the runs.
    """
    if len(collection.methods) < 2:
        return ""
    return collection.floors[0] if collection.floors else collection.reference


def client_scores(collection: Collection, method: str, task: str, seeds: set[int]) -> Scores:
    """The scores that are compared client by client.

    Where the data are the same for all seeds, a client is one client, and its score the mean over the seeds. Where each
    seed has a partition of its own, the client `3` of one seed is another than that of the next: each pair of seed and
    client is one.

    Args:
        collection: the runs.
        method: its label.
        task: its label.
        seeds: those that count.
    """
    runs = {seed: run for seed, run in collection.of(method, task).items() if seed in seeds}
    found = {seed: run.per_client(split=collection.split) for seed, run in runs.items()}
    if _same_clients(collection, task):
        everywhere = set.intersection(*(set(scores) for scores in found.values())) if found else set()
        return {client: sum(scores[client] for scores in found.values()) / len(found) for client in everywhere}
    return {(seed, client): value for seed, scores in found.items() for client, value in scores.items()}


def _same_clients(collection: Collection, task: str) -> bool:
    return all(run.data_seed >= 0 for run in collection.runs if run.task == task)


def _row(collection: Collection, method: str, task: str, other: str) -> list[Cell]:
    runs, metric = collection.of(method, task), collection.metrics[task]
    expected = len(collection.seeds(task))
    entries = [entry for run in runs.values() if (entry := run.entry(split=collection.split))]
    against = _against(collection, method, task, other) if other else []
    worst = averaged([float(entry["worst-decile"]) for entry in entries], metric, expected)
    deviation = averaged([float(entry["std"]) for entry in entries], metric, expected)
    fairness = [_mean(runs, collection, measure) for measure in (jain, gini)]
    scores = (with_unit(collection, task, cell) for cell in (worst, deviation))
    return [*against, *scores, *fairness, count(int(entries[0]["clients"]))]


def _against(collection: Collection, method: str, task: str, other: str) -> list[Cell]:
    """Won, tied, lost and the sign test's p."""
    seeds = set(collection.of(method, task)) & set(collection.of(other, task))
    if method == other or not seeds:
        return [Cell(EMPTY)] * 4
    ours, theirs = (client_scores(collection, label, task, seeds) for label in (method, other))
    found: Duel = duel(ours, theirs, collection.metrics[task].higher)
    return [*(count(number) for number in found), probability(sign_test(found))]


def _mean(runs: Mapping[int, RunFacts], collection: Collection, measure: Callable[[list[float]], float | None]) -> Cell:
    """The mean over seeds of a measure of the clients' scores."""
    values = [measure([*run.per_client(split=collection.split).values()]) for run in runs.values()]
    known = [value for value in values if value is not None]
    if not known:
        return Cell(EMPTY, note="not defined: a score is below 0, or all are 0")
    mean = sum(known) / len(known)
    return Cell(f"{mean:.3f}", mean)


def _notes(collection: Collection, other: str) -> list[str]:
    notes = []
    if other and collection.runs:
        same = all(_same_clients(collection, task) for task in collection.tasks)
        unit = "its mean over the seeds counts" if same else "each seed's clients count on their own"
        notes.append(
            f"Won, tied and lost are clients, compared with {other} with no tolerance but for rounding; {unit}."
        )
        notes.append("The sign test is not adjusted for the number of methods, and takes clients as independent.")
    if any(not collection.metrics[task].higher for task in collection.tasks):
        notes.append(
            "Jain's index and Gini's coefficient are of the scores as they are, of which lower is better here."
        )
    return notes
