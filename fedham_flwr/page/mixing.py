"""Whom each client listens to: the mixing weights of a comparison's runs, few enough bytes for a page."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from fedham_flwr.analysis.cells import Cell, Column, Table
from fedham_flwr.analysis.collection import Collection
from fedham_flwr.page.compact import quantised, short, thinned
from fedham_flwr.page.html import figure, folded, paragraph, shown
from fedham_flwr.page.sources import Places, named
from fedham_flwr.page.weights import Weights

ROWS = 16
"""Clients up to which the last weights are in a table, too."""
RUNS, TABLES = 24, 8
"""Runs whose own weights are in a table, and methods and tasks whose last weights are, at most."""


def mixing_data(places: Places, all_weights: Sequence[Weights]) -> dict[str, Any] | None:
    """What the heat map is drawn from; None without weights.

    Args:
        places: of methods, tasks and seeds.
        all_weights: of all runs.
    """
    return {"runs": [_packed(places, weights) for weights in all_weights]} if all_weights else None


def mixing_parts(collection: Collection, all_weights: Sequence[Weights], share: float = 1.0) -> str:
    """The heat map, and its numbers; nothing without weights.

    Args:
        collection: the runs.
        all_weights: of all runs.
        share: of the runs that there is room for in the tables.
    """
    if not all_weights:
        return ""
    some = [all_weights[at] for at in thinned(len(all_weights), max(2, int(RUNS * share)))]
    firsts = [each for each in all_weights if each.run.seed == _first(all_weights, each)]
    last = [each for each in firsts if len(each.clients) <= ROWS][: max(1, int(TABLES * share))]
    tables = [shown(_own_table(some, len(all_weights))), *(shown(_last_table(collection, each)) for each in last)]
    note = next(filter(None, map(_left_out, all_weights)), "")
    label = "Whom each client listens to: the weight of each peer's layers in a client's model"
    finding = " ".join(_finding(collection, each) for each in firsts[:TABLES])
    return figure("mixing-figure", label, finding) + paragraph(note, "note") + folded("The weights as tables", *tables)


def _left_out(weights: Weights) -> str:
    """What of a run is not drawn; empty if all is."""
    clients, rounds, _ = weights.of
    if (len(weights.clients), len(weights.rounds)) == (clients, rounds):
        return ""
    return (
        f"To keep the page small, {len(weights.clients)} of {clients} clients and {len(weights.rounds)} of {rounds} "
        f"rounds are drawn of {weights.run.method}, spread evenly; the files in mixing/ of a run hold all."
    )


def _first(all_weights: Sequence[Weights], weights: Weights) -> int:
    """The first seed of a method on a task."""
    return min(w.run.seed for w in all_weights if (w.run.method, w.run.task) == (weights.run.method, weights.run.task))


def _packed(places: Places, weights: Weights) -> dict[str, Any]:
    highest = max(float(np.nanmax(weights.values)), 1e-9)
    others = np.where(weights.own, 0.0, np.nan_to_num(weights.values))
    return places.at(weights.run) | {
        "rounds": weights.rounds,
        "groups": weights.groups,
        "clients": weights.clients,
        "peers": weights.peers,
        "highest": short(highest),
        "highest-other": short(max(float(others.max()), 1e-9)),
        "weights": quantised(weights.values, highest),
    }


def _finding(collection: Collection, weights: Weights) -> str:
    """How much clients keep to themselves in the last round, in words."""
    last = weights.self_weights[-1]
    parts = [f"{group} {value:.2f}" for group, value in zip(weights.groups, last, strict=True) if np.isfinite(value)]
    who, equal = f"{weights.run.method}, seed {weights.run.seed}", 1 / weights.of[2]
    said = f"the mean weight of a client's own model is {', '.join(parts)}; equal weights would be {equal:.2f}."
    return named(collection, weights.run.task, f"{who}, round {weights.rounds[-1]}: {said}")


def _own_table(all_weights: Sequence[Weights], count: int) -> Table:
    """The weight that clients give themselves: a layer group of a run in a row, a round in a column."""
    numbers = sorted({number for weights in all_weights for number in weights.rounds})
    rounds = [numbers[at] for at in thinned(len(numbers), 8)]
    words = (Column("method", "text"), Column("task", "text"), Column("seed"), Column("layer group", "text"))
    columns = (*words, *(Column(f"round {number}") for number in rounds))
    rows = []
    for weights in all_weights:
        run, own = weights.run, weights.self_weights
        for layer, group in enumerate(weights.groups):
            known = {number: own[at, layer] for at, number in enumerate(weights.rounds)}
            cells = (_cell(known.get(number, np.nan)) for number in rounds)
            rows.append((Cell(run.method), Cell(run.task), Cell(str(run.seed), run.seed), Cell(group), *cells))
    title = "Weight that a client gives itself, mean over the clients drawn"
    notes = (f"{len(all_weights)} of {count} runs.",) if len(all_weights) < count else ()
    return Table("own-weights", title, columns, tuple(rows), notes)


def _last_table(collection: Collection, weights: Weights) -> Table:
    """The weights of the last round of one run."""
    columns = (
        Column("client", "text"),
        Column("layer group", "text"),
        *(Column(f"of {peer}") for peer in weights.peers),
    )
    rows = tuple(
        (Cell(client), Cell(group), *(_cell(value) for value in weights.values[-1, layer, at]))
        for at, client in enumerate(weights.clients)
        for layer, group in enumerate(weights.groups)
    )
    title = f"Weights of round {weights.rounds[-1]}: {weights.run.method}, seed {weights.run.seed}"
    name = f"weights-{collection.methods.index(weights.run.method)}-{collection.tasks.index(weights.run.task)}"
    return Table(name, named(collection, weights.run.task, title), columns, rows)


def _cell(weight: float) -> Cell:
    return Cell(f"{weight:.3f}", float(weight)) if np.isfinite(weight) else Cell()
