"""Whom each client listens to: the mixing weights of a comparison's runs, few enough bytes for a page."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from fedham_flwr.analysis.cells import Cell, Column, Table
from fedham_flwr.analysis.collection import Collection
from fedham_flwr.analysis.facts import RunFacts
from fedham_flwr.federation.roster import order
from fedham_flwr.page.compact import quantised, short, thinned
from fedham_flwr.page.html import figure, folded, paragraph, shown
from fedham_flwr.page.sources import Places, named

MOST = 420_000
"""Weights in a page, at most, a byte each before they are written as text."""
ROUNDS, CLIENTS = 24, 40
"""Rounds and clients of one run, at most."""
ROWS = 16
"""Clients up to which the last weights are in a table, too."""
Array = np.ndarray[Any, Any]


class Weights(NamedTuple):
    """The weights of one run that are drawn."""

    run: RunFacts
    rounds: tuple[int, ...]
    groups: tuple[str, ...]
    clients: tuple[str, ...]
    peers: tuple[str, ...]
    values: Array  # float [R, L, n, N], NaN where a client had no weights in a round


def weights_of(collection: Collection) -> list[Weights]:
    """The weights of all runs that have any, of some rounds and clients where there are many.

    Args:
        collection: the runs.
    """
    mixing = [run for run in collection.runs if any((run.directory / "mixing").glob("round-*.parquet"))]
    most = MOST // max(1, len(mixing))
    return [weights for run in mixing if (weights := _read(run, most)) is not None]


def mixing_data(places: Places, all_weights: Sequence[Weights]) -> dict[str, Any] | None:
    """What the heat map is drawn from; None without weights.

    Args:
        places: of methods, tasks and seeds.
        all_weights: of all runs.
    """
    return {"runs": [_packed(places, weights) for weights in all_weights]} if all_weights else None


def mixing_parts(collection: Collection, all_weights: Sequence[Weights]) -> str:
    """The heat map, and its numbers; nothing without weights.

    Args:
        collection: the runs.
        all_weights: of all runs.
    """
    if not all_weights:
        return ""
    tables = [shown(_own_table(all_weights))]
    tables += [
        shown(_last_table(collection, w))
        for w in all_weights
        if len(w.clients) <= ROWS and w.run.seed == _first(all_weights, w)
    ]
    note = next(filter(None, map(_left_out, all_weights)), "")
    label = "Whom each client listens to: the weight of each peer's layers in a client's model"
    finding = " ".join(_finding(weights) for weights in all_weights if weights.run.seed == _first(all_weights, weights))
    return figure("mixing-figure", label, finding) + paragraph(note, "note") + folded("The weights as tables", *tables)


def _left_out(weights: Weights) -> str:
    """What of a run is not drawn; empty if all is."""
    clients, rounds = _count(weights.run, "client"), _count(weights.run, "round")
    if (len(weights.clients), len(weights.rounds)) == (clients, rounds):
        return ""
    return (
        f"To keep the page small, {len(weights.clients)} of {clients} clients and {len(weights.rounds)} of {rounds} "
        f"rounds are drawn of {weights.run.method}, spread evenly; the files in mixing/ of a run hold all."
    )


def _first(all_weights: Sequence[Weights], weights: Weights) -> int:
    """The first seed of a method on a task."""
    return min(w.run.seed for w in all_weights if (w.run.method, w.run.task) == (weights.run.method, weights.run.task))


def _count(run: RunFacts, column: str) -> int:
    return len(run.mixing[column].unique())


def _read(run: RunFacts, most: int) -> Weights | None:
    """Weights of a run as an array, thinned to `most` numbers."""
    table = run.mixing
    if not len(table):
        return None
    names = {name: table[name].combine_chunks() for name in ("client", "group", "peer")}
    known = {name: column.dictionary.to_pylist() for name, column in names.items()}
    clients, peers = (_some(order(set(known[name]))) for name in ("client", "peer"))
    if set(clients) <= set(known["peer"]):
        peers = clients
    groups = tuple(dict.fromkeys(known["group"]))
    each = len(clients) * len(peers) * len(groups)
    all_rounds = sorted(set(table["round"].to_pylist()))
    rounds = tuple(all_rounds[at] for at in thinned(len(all_rounds), max(2, min(ROUNDS, most // each))))
    values = np.full((len(rounds), len(groups), len(clients), len(peers)), np.nan)
    places = [
        _places(known[name], wanted)[names[name].indices.to_numpy()]
        for name, wanted in (("group", groups), ("client", clients), ("peer", peers))
    ]
    numbers, weights = table["round"].to_numpy(), table["weight"].to_numpy()
    at = np.array([rounds.index(number) if number in rounds else -1 for number in all_rounds])
    place = at[np.searchsorted(all_rounds, numbers)]
    heard = (place >= 0) & (places[1] >= 0)
    values[place[heard], places[0][heard], places[1][heard]] = 0.0
    there = heard & (places[2] >= 0)
    values[place[there], places[0][there], places[1][there], places[2][there]] = weights[there]
    return Weights(run, rounds, groups, clients, peers, values)


def _some(names: Sequence[str]) -> tuple[str, ...]:
    return tuple(names[at] for at in thinned(len(names), CLIENTS))


def _places(known: Sequence[str], wanted: Sequence[str]) -> Array:
    return np.array([wanted.index(name) if name in wanted else -1 for name in known], dtype=np.int64)


def _own(weights: Weights) -> Array:
    """Which cells are a client's weight of itself: bool [n, N]."""
    own: Array = np.array(weights.clients, dtype=object)[:, None] == np.array(weights.peers, dtype=object)
    return own


def _packed(places: Places, weights: Weights) -> dict[str, Any]:
    highest = max(float(np.nanmax(weights.values)), 1e-9)
    others = np.where(_own(weights), 0.0, np.nan_to_num(weights.values))
    return places.at(weights.run) | {
        "rounds": weights.rounds,
        "groups": weights.groups,
        "clients": weights.clients,
        "peers": weights.peers,
        "highest": short(highest),
        "highest-other": short(max(float(others.max()), 1e-9)),
        "weights": quantised(weights.values, highest),
    }


def _self_weights(weights: Weights) -> Array:
    """The weight that clients give themselves, mean over clients: [R, L]."""
    own = _own(weights)
    return np.array(
        [
            [np.nanmean(group[own]) if own.any() and not np.isnan(group[own]).all() else np.nan for group in each]
            for each in weights.values
        ]
    )


def _finding(weights: Weights) -> str:
    """How much clients keep to themselves in the last round, in words."""
    last = _self_weights(weights)[-1]
    parts = [f"{group} {value:.2f}" for group, value in zip(weights.groups, last, strict=True) if np.isfinite(value)]
    who, equal = f"{weights.run.method}, seed {weights.run.seed}", 1 / _count(weights.run, "peer")
    said = f"the mean weight of a client's own model is {', '.join(parts)}; equal weights would be {equal:.2f}."
    return f"{who}, round {weights.rounds[-1]}: {said}"


def _own_table(all_weights: Sequence[Weights]) -> Table:
    """The weight that clients give themselves, over the rounds."""
    columns = (
        Column("method", "text"),
        Column("task", "text"),
        Column("seed"),
        Column("layer group", "text"),
        Column("round"),
        Column("own weight"),
    )
    rows = []
    for weights in all_weights:
        run, own = weights.run, _self_weights(weights)
        for layer, group in enumerate(weights.groups):
            for at in thinned(len(weights.rounds), 6):
                said = (
                    Cell(run.method),
                    Cell(run.task),
                    Cell(str(run.seed), run.seed),
                    Cell(group),
                    Cell(str(weights.rounds[at]), weights.rounds[at]),
                )
                rows.append((*said, _cell(own[at, layer])))
    return Table("own-weights", "Weight that a client gives itself, mean over the clients drawn", columns, tuple(rows))


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
