"""The server half of pFedGraph; see algorithms/pfedgraph.py."""

from collections.abc import Mapping, Sequence
from typing import final

import torch
from torch import Tensor
from torch.nn.functional import pad

from fedham_flwr.algorithms import pfedgraph
from fedham_flwr.algorithms.pfedgraph import REFERENCE, PFedGraphSettings
from fedham_flwr.core.devices import resolve_device
from fedham_flwr.core.parameters import Params
from fedham_flwr.core.records import MixingWeights
from fedham_flwr.core.trees import read_clients
from fedham_flwr.federation.contract import Extras, Setup, Start, Upload
from fedham_flwr.federation.rounds import RoundStrategy
from fedham_flwr.mixing.gram import Gram
from fedham_flwr.mixing.pool import Pool

AT_ONCE = 256
"""Clients whose rows are made at a time, or recorded of an exchange: all rows are N squared."""


@final
class PFedGraphStrategy(RoundStrategy):
    """The pool of the clients' models, and the graph that says whose are mixed for whom."""

    own: PFedGraphSettings

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        self._pool, self._gram, self._samples = self._empty()

    def add_clients(self, clients: Sequence[str]) -> None:
        """Give new clients a place in the pool, with the common start."""
        if new := self._pool.add(clients):
            self._gram.add(len(new))
            self._samples = pad(self._samples, (0, len(new)))

    def plan(self, round_number: int, clients: Sequence[str]) -> Mapping[str, Start]:
        """R2: the mixture of each client, and what its model is to be similar to."""
        if not self._pool.learned.any():
            return dict.fromkeys(clients, Start(self.first, own=True))
        starts: dict[str, Start] = {}
        for at in range(0, len(clients), AT_ONCE):
            some = clients[at : at + AT_ONCE]
            weights = self._weights(some)
            mixed, extras = self._pool.mixtures(some, self._by_group(weights)), self._references(some, weights)
            starts |= {client: Start(mixed[client], extras[client], own=True) for client in some}
        return starts

    def merge(self, round_number: int, uploads: Mapping[str, Upload]) -> None:
        """R5: put the trained models into the pool."""
        self._pool.put({client: upload.params for client, upload in uploads.items()})
        self._gram.update(list(uploads))
        examples = torch.tensor([upload.examples for upload in uploads.values()], dtype=torch.int64)
        self._samples[self._pool.bank.rows(list(uploads))] = examples

    def mixing_weights(
        self, round_number: int, clients: Sequence[str], uploads: Mapping[str, Upload]
    ) -> MixingWeights | None:
        """The rows of the graph, of at most `AT_ONCE` clients; none as long as nobody has trained."""
        if not self._pool.learned.any():
            return None
        some, bank = tuple(clients[:AT_ONCE]), self._pool.bank
        return MixingWeights(some, bank.groups, bank.clients, self._by_group(self._weights(some)))

    def state_dict(self) -> Params:
        """The pool, the inner products of its models, and the clients' samples; live, not copied."""
        return {**self._pool.state_dict(), **self._gram.state_dict(), "samples": self._samples}

    def load_state_dict(self, state: Params) -> None:
        """Continue from what `state_dict` gave.

        Raises:
            ValueError: it is not of this model and these settings, or a model is not finite.
        """
        self._pool, self._gram, self._samples = self._empty()
        self.add_clients(read_clients(state))
        self._pool.load(state, self.state_dict())

    def _empty(self) -> tuple[Pool, Gram, Tensor]:
        pool = Pool(self.manifest, self.first, resolve_device(self.settings.device), self.setup.storage)
        return pool, Gram(self.manifest, pool.bank, self.first), torch.zeros(0, dtype=torch.int64)

    def _weights(self, clients: Sequence[str]) -> Tensor:
        """R1: float32 [n, N]; somebody has trained."""
        samples, rows = self._samples.double(), self._pool.bank.rows(clients)
        allowed = self._pool.learned.expand(len(clients), -1)
        return pfedgraph.graph(self._gram.cosines(rows), samples / samples.sum(), allowed, self.own.alpha).float()

    def _references(self, clients: Sequence[str], weights: Tensor) -> dict[str, Extras]:
        """R2: r_i of each client, if it is needed and is not the mixture itself."""
        facts = {"regularised": (int(self.own.penalty > 0),)}
        if not self.own.penalty or self.own.reference == "mixture":
            return dict.fromkeys(clients, Extras(facts=facts))
        lengths, buffers = self._gram.lengths(), set(self.manifest.buffers)
        scaled = torch.where(lengths > 0, weights / lengths, 0.0).float()
        found = self._pool.mixtures(clients, self._by_group(scaled))
        return {
            client: Extras({REFERENCE + n: t for n, t in tensors.items() if n not in buffers}, facts)
            for client, tensors in found.items()
        }

    def _by_group(self, weights: Tensor) -> Tensor:
        """The same weights for each layer group: [n, L, N]."""
        return weights[:, None].expand(-1, len(self._pool.bank.groups), -1)
