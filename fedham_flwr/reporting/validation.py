"""What validation says of a round: the mean over the samples of all clients, of the models that the clients use."""

from __future__ import annotations

from collections.abc import Collection, Iterable

import numpy as np

from fedham_flwr.core.records import MEMBER, Row


def validation_values(rows: Iterable[Row], clients: Collection[str], phase: str) -> dict[str, float]:
    """Metric -> its mean over the validation samples of all clients; empty unless every client was evaluated.

    A client's model is its personal one, or everybody's as long as it has none. Clients for whom a metric is not
    defined do not count in its mean.

    Args:
        rows: of one round, in an order that does not depend on the order of replies.
        clients: those that have validation samples.
        phase: of the models that clients use, see `Settings.phase`.
    """
    own: dict[str, dict[str, Row]] = {}
    for row in rows:
        if (row.split, row.phase, row.population) == ("validation", phase, MEMBER) and row.client in clients:
            found = own.setdefault(row.metric, {})
            if row.model == "personal" or row.client not in found:
                found[row.client] = row
    if not clients or own.get("loss", {}).keys() != set(clients):
        return {}
    return {metric: _mean(list(found.values())) for metric, found in own.items()}


def _mean(rows: list[Row]) -> float:
    values = np.array([row.value for row in rows], dtype=np.float64)
    weights = np.array([row.n for row in rows], dtype=np.float64)
    return float(values @ weights) / float(weights.sum())
