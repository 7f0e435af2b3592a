"""Which clients a picture of mixing weights shows when there are too many for one: some, and whom they listen to."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from fedham_flwr.core.records import MixingWeights
from fedham_flwr.core.seeding import stream
from fedham_flwr.federation.roster import order
from fedham_flwr.reporting.mixing_weights import clients_of, latest

MOST = 60
"""Clients that a picture shows at most."""
DRAWN = MOST // 5


def sample(run: Path, seed: int) -> tuple[MixingWeights, str] | None:
    """The last weights of all clients or, of more than can be shown, of some.

    Of 2,000 clients any 60 mostly do not listen to each other. So a few are drawn, the others are those to whom these
    give most weight over all layer groups, and if these are too few more are drawn. Clients that listen to each other
    stand together.

    Args:
        run: the run's directory.
        seed: the run's.

    Returns:
        The weights and what to say of the choice, empty if all are shown; None if the run has no mixing weights.

    Raises:
        UserError: `run` is not the directory of a run.
    """
    clients = clients_of(run)
    if not clients:
        return None
    many = len(clients) > MOST
    drawn = stream(seed, "pictured").permutation(len(clients)) if many else np.arange(len(clients))
    first = [clients[place] for place in drawn[: DRAWN if many else None]]
    given = latest(run, clients=first)
    if not many and len(given.peers) <= MOST:
        return given, ""
    total = given.weights.sum((0, 1)).numpy()
    wanted = set(clients if many else given.peers) - set(first)
    heaviest = [given.peers[place] for place in np.argsort(-total, kind="stable") if total[place] > 0]
    heard = [peer for peer in heaviest if peer in wanted][: MOST - len(first)]
    rest = [clients[place] for place in drawn if clients[place] not in {*first, *heard}]
    chosen = order([*first, *heard, *rest][:MOST])
    weights = latest(run, clients=chosen if many else clients, peers=chosen)
    if not many:
        return weights, f"{len(chosen)} of {len(given.peers):,} peers"
    others = f" and the {len(heard)} to whom these give most weight" if heard else ""
    note = f"{len(chosen)} of {len(clients):,} clients: {len(chosen) - len(heard)} drawn{others}"
    return _together(weights), note


def _together(weights: MixingWeights) -> MixingWeights:
    """The same weights, in an order in which clients that give each other weight are neighbours."""
    from scipy.cluster.hierarchy import leaves_list, linkage  # it comes with scikit-learn
    from scipy.spatial.distance import squareform

    names, mean = list(weights.peers), weights.weights.mean(1).double().numpy()
    given = np.zeros((len(names), len(names)))
    given[[names.index(client) for client in weights.clients]] = mean
    given += given.T
    np.fill_diagonal(given, 0.0)
    apart = 1 - given / max(given.max(), 1e-300)
    np.fill_diagonal(apart, 0.0)
    leaves = leaves_list(linkage(squareform(apart, checks=False), "average", optimal_ordering=True))
    peers = tuple(names[leaf] for leaf in leaves.tolist())
    clients = tuple(peer for peer in peers if peer in weights.clients)
    rows = torch.tensor([weights.clients.index(client) for client in clients])
    whole = weights.weights[rows][:, :, torch.from_numpy(leaves.astype(np.int64))]
    return MixingWeights(clients, weights.groups, peers, whole)
