"""How much each client has gained from which others, of those pairs alone that have met: no N times N numbers."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from fedham_flwr.core.parameters import Params

NAMES = ("affinity/clients", "affinity/peers", "affinity/values")


class Affinity:
    """Sums of weights that clients gave to others, by the places of both."""

    def __init__(self) -> None:
        self._of: dict[int, dict[int, float]] = {}

    def update(self, client: int, peers: Tensor, weights: Tensor) -> None:
        """Add a client's weights.

        Args:
            client: its place.
            peers: int64 [M], the others' places.
            weights: [M], of either sign.
        """
        row = self._of.setdefault(client, {})
        for peer, weight in zip(peers.tolist(), weights.tolist(), strict=True):
            row[peer] = row.get(peer, 0.0) + weight

    def row(self, client: int, peers: int) -> Tensor:
        """A client's sums: float64 [N], 0 for those that it has not met.

        Args:
            client: its place.
            peers: N.
        """
        found, row = torch.zeros(peers, dtype=torch.float64), self._of.get(client, {})
        found[torch.tensor(list(row), dtype=torch.int64)] = torch.tensor(list(row.values()), dtype=torch.float64)
        return found

    def state_dict(self) -> Params:
        """All sums [E] and the places of both, in order."""
        known = sorted((client, peer, value) for client, row in self._of.items() for peer, value in row.items())
        clients, peers, values = zip(*known, strict=True) if known else ((), (), ())
        kinds = (torch.int64, torch.int64, torch.float64)
        given = zip(NAMES, (clients, peers, values), kinds, strict=True)
        return {name: torch.tensor(numbers, dtype=kind) for name, numbers, kind in given}

    def load(self, state: Mapping[str, Tensor], clients: int) -> None:
        """Become what `state_dict` gave.

        Args:
            state: a server's.
            clients: N.

        Raises:
            ValueError: it has no such sums, or they are of clients that there are not.
        """
        if missing := [name for name in NAMES if name not in state]:
            raise ValueError(f"tensors are missing: {missing}")
        owners, peers, values = (state[name] for name in NAMES)
        if not len(owners) == len(peers) == len(values) or not bool(torch.isfinite(values).all()):
            raise ValueError("wanted affinities that are a finite number for each pair of clients")
        if (
            len(owners)
            and not 0 <= int(torch.cat([owners, peers]).min()) <= int(torch.cat([owners, peers]).max()) < clients
        ):
            raise ValueError(f"an affinity is of a client that is none of {clients}")
        self._of = {}
        for client, peer, value in zip(owners.tolist(), peers.tolist(), values.tolist(), strict=True):
            self._of.setdefault(client, {})[peer] = value
