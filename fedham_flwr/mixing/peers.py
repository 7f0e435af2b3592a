"""FedHAM with `peers`: whose models a client is sent, and how it mixes them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from fedham_flwr.algorithms.fedham import FedHAMSettings
from fedham_flwr.core.neighbours import nearest_and_drawn
from fedham_flwr.core.parameters import Manifest, Params
from fedham_flwr.core.seeding import torch_stream
from fedham_flwr.mixing.bank import Bank
from fedham_flwr.mixing.pool import Pool
from fedham_flwr.mixing.rows import Row

TOGETHER = "together/"
"""Prefix of the one model that some peers are mixed into."""


class Choice(NamedTuple):
    """Whose models a client gets."""

    peers: list[int]  # places of those whose models it gets as they are
    together: Row  # of those that it gets as one model, and what this is mixed by


def choose(pool: Pool, settings: FedHAMSettings, seed: int, round_number: int, client: str, row: Row | None) -> Choice:
    """Choose those to whom a client gives most weight, of all layers, and some that are drawn.

    Args:
        pool: whose models may be sent.
        settings: how many.
        seed: the run's.
        round_number: the round; it and the client settle what is drawn.
        client: its id.
        row: its row over all models; without one lots decide.
    """
    row = row or Row(torch.arange(len(pool.ready)), torch.zeros(1, len(pool.ready)))
    draws = torch_stream(seed, "peers", round_number, client)
    others, nearness = others_of(pool, client), row.weights.mean(0)
    peers = nearest_and_drawn(nearness, others, settings.peers or len(others), settings.exploration, draws)
    rest = others[~torch.isin(others, peers) & settings.mixed_rest]
    return Choice(peers.tolist(), row.of(rest))


def others_of(pool: Pool, client: str) -> Tensor:
    """The places of those that may be mixed for a client, itself left out."""
    ready = pool.ready.nonzero().flatten()
    return ready[ready != pool.bank.rows([client])]


class Peers:
    """Models of some of all N clients, and one mixture of some others, which stands for each of these.

    Args:
        manifest: the model's.
        device: where they are mixed.
        own: the client's own place among all N.
        model: its own shared tensors.
        others: place -> shared tensors of a peer.
        together: places of those that are in the mixture.
        mixture: its shared tensors; none of no models.
        projections: centred ones (7) of all these, in the order of their places: float32 [M + 1 + R, L, d].
        shares: [1, N], whose models may be mixed, see `amn.attend`.

    Attributes:
        bank: the models, in the order of their places, and last the mixture.
        places: int64 [M + 1], of its rows among all N clients.
        together: int64 [R].
        seen: float32 [N, L, d], the projections; 0 of those that are not here.
        allowed: [1, N], the shares of those that are here; 0 of others.
    """

    def __init__(
        self,
        manifest: Manifest,
        device: torch.device,
        own: int,
        model: Params,
        others: Mapping[int, Params],
        together: Sequence[int],
        mixture: Params,
        projections: Tensor,
        shares: Tensor,
    ) -> None:
        self.places = torch.tensor(sorted((*others, own)), dtype=torch.int64)
        self.together = torch.tensor(together, dtype=torch.int64)
        ids = [str(place) for place in self.places.tolist()]
        self.bank = Bank(manifest, tuple(model), device)
        self.bank.add(ids, model)
        self.bank.put([name for name in ids if name != str(own)], [others[place] for place in sorted(others)])
        if together:
            self.bank.add(["together"], mixture)
        here = torch.zeros(shares.shape[1], dtype=torch.bool)
        here[self.places] = here[self.together] = True
        self.seen = torch.zeros(len(here), *projections.shape[1:])
        self.seen[here] = projections
        self.allowed = shares * here

    @property
    def groups(self) -> Sequence[str]:
        """The layer groups."""
        return self.bank.groups

    def mix(self, weights: Tensor) -> Params:
        """The mixture of the models, and of the one that came mixed by the sum of its clients' weights.

        Args:
            weights: [1, groups, N].
        """
        hybrid: Params = {}
        shared = weights[..., self.together].sum(-1, keepdim=True)[..., : len(self.bank.clients) - len(self.places)]
        given = torch.cat([weights[..., self.places], shared], -1)
        for at, group in enumerate(self.bank.groups):
            (row,) = self.bank.mix(group, given[:, at])
            hybrid |= self.bank.tensors(group, row.cpu())
        return hybrid

    def inner(self, direction: Params) -> Tensor:
        """Inner products of a direction with each model, by layer group, with what stands for it: [1, groups, N]."""
        scores = torch.zeros(1, len(self.groups), self.seen.shape[0], dtype=torch.float64)
        for at, group in enumerate(self.bank.groups):
            found = self.bank.inner(group, direction)
            scores[0, at, self.places] = found[: len(self.places)]
            scores[0, at, self.together] = found[-1]
        return scores
