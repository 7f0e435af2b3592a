"""Mixing weights of runs as arrays small enough for a page: of some rounds, and of some clients of many."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fedham_flwr.analysis.collection import Collection
from fedham_flwr.analysis.facts import RunFacts
from fedham_flwr.federation.roster import order
from fedham_flwr.page.compact import thinned
from fedham_flwr.reporting.mixing_weights import clients_of
from fedham_flwr.reporting.parquet import read_part

MOST = 360_000
"""Weights in a page, at most, a byte each before they are written as text."""
ROUNDS, CLIENTS = 24, 40
"""Rounds and clients of one run, at most."""
Array = np.ndarray[Any, Any]


class Weights(NamedTuple):
    """The weights of one run that are drawn.

    Attributes:
        run: whose.
        rounds: R of them.
        groups: layer groups, L of them.
        clients: n of them.
        peers: N of them; the clients, where these are peers too.
        values: float [R, L, n, N], NaN where a client had no weights in a round.
        of: how many clients, rounds and peers the run has.
    """

    run: RunFacts
    rounds: tuple[int, ...]
    groups: tuple[str, ...]
    clients: tuple[str, ...]
    peers: tuple[str, ...]
    values: Array
    of: tuple[int, int, int]

    @property
    def own(self) -> Array:
        """Which cells are a client's weight of itself: bool [n, N]."""
        same: Array = np.array(self.clients, dtype=object)[:, None] == np.array(self.peers, dtype=object)
        return same

    @property
    def self_weights(self) -> Array:
        """The weight that clients give themselves, mean over those that have one: [R, L], NaN where none has."""
        values = self.values[:, :, self.own]
        known = ~np.isnan(values)
        count = known.sum(-1)
        return np.where(count > 0, np.where(known, values, 0.0).sum(-1) / np.maximum(count, 1), np.nan)


def weights_of(collection: Collection, share: float = 1.0) -> list[Weights]:
    """The weights of all runs that have any, of some rounds and clients where there are many.

    Args:
        collection: the runs.
        share: of the weights that there is room for.
    """
    parts = {run.directory: _parts(run.directory) for run in collection.runs}
    mixing = [run for run in collection.runs if parts[run.directory]]
    most = int(MOST * share) // max(1, len(mixing))
    return [_read(run, parts[run.directory], most) for run in mixing]


def _parts(run: Path) -> dict[int, Path]:
    """Round -> its file, of several of one round the last."""
    return {int(part.name.split("-")[1]): part for part in sorted((run / "mixing").glob("round-*.parquet"))}


def _read(run: RunFacts, parts: dict[int, Path], most: int) -> Weights:
    """Weights of a run, thinned to about `most` numbers; only the files of rounds that are kept are read."""
    numbers, everyone = sorted(parts), clients_of(run.directory)
    last = _columns(parts[numbers[-1]])
    groups, of_peers = tuple(dict.fromkeys(last["group"][0])), order(set(last["peer"][0]))
    side = min(CLIENTS, max(8, int((most / (2 * len(groups))) ** 0.5)))
    clients = _some(everyone, side)
    peers = clients if set(clients) <= set(of_peers) else _some(of_peers, side)
    each = len(clients) * len(peers) * len(groups)
    rounds = tuple(numbers[at] for at in thinned(len(numbers), max(2, min(ROUNDS, most // each))))
    values = np.stack([_dense(_columns(parts[number]), groups, clients, peers) for number in rounds])
    return Weights(run, rounds, groups, clients, peers, values, (len(everyone), len(numbers), len(of_peers)))


def _columns(part: Path) -> dict[str, Any]:
    """Weights of a file as an array; client, group and peer as (names, number of the name in each row)."""
    table = read_part(part).unify_dictionaries()
    columns: dict[str, Any] = {"weight": table["weight"].to_numpy()}
    for name in ("client", "group", "peer"):
        column = table[name].combine_chunks()
        columns[name] = (column.dictionary.to_pylist(), column.indices.to_numpy())
    return columns


def _dense(columns: dict[str, Any], groups: Sequence[str], clients: Sequence[str], peers: Sequence[str]) -> Array:
    """The weights of one round: [L, n, N]; a weight that has no row is 0 for a client that has others."""
    values = np.full((len(groups), len(clients), len(peers)), np.nan)
    wanted = {"group": groups, "client": clients, "peer": peers}
    layer, who, whom = (_places(columns[name][0], known)[columns[name][1]] for name, known in wanted.items())
    heard = (layer >= 0) & (who >= 0)
    values[layer[heard], who[heard]] = 0.0
    there = heard & (whom >= 0)
    values[layer[there], who[there], whom[there]] = columns["weight"][there]
    return values


def _places(known: Sequence[str], wanted: Sequence[str]) -> Array:
    """The place of each known name among the wanted ones; -1 of others."""
    places = {name: at for at, name in enumerate(wanted)}
    return np.array([places.get(name, -1) for name in known], dtype=np.int64)


def _some(names: Sequence[str], most: int) -> tuple[str, ...]:
    return tuple(names[at] for at in thinned(len(names), most))
