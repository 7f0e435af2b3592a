"""The server half of FedCAC; see algorithms/fedcac.py."""

from collections.abc import Mapping, Sequence
from typing import final

import torch
from torch import Tensor

from fedham_flwr.algorithms import fedavg, fedcac
from fedham_flwr.algorithms.fedcac import FedCACSettings
from fedham_flwr.core.devices import resolve_device
from fedham_flwr.core.parameters import Params
from fedham_flwr.core.records import MixingWeights
from fedham_flwr.core.trees import read_clients
from fedham_flwr.federation.contract import Setup, Start, Upload
from fedham_flwr.federation.rounds import RoundStrategy
from fedham_flwr.mixing.masks import Masks
from fedham_flwr.mixing.pool import Pool

AT_ONCE = 64
"""Clients whose starts are made at a time: each takes the memory of two models."""
RECORDED = 256
"""Clients whose weights are recorded of an exchange, or that overlaps are looked at of: all are N squared."""


@final
class FedCACStrategy(RoundStrategy):
    """The pool of the clients' models, the masks of what is critical in them, and the mean for what is not."""

    own: FedCACSettings

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        buffers = set(self.manifest.buffers)
        self._shapes = {name: self.manifest.shapes[name] for name in self.split.shared if name not in buffers}
        self._count = sum(fedcac.many(torch.Size(s).numel(), self.own.share) for s in self._shapes.values())
        self._pool, self._masks = self._empty()
        self._mean = {name: tensor.clone() for name, tensor in self.first.items()}

    def add_clients(self, clients: Sequence[str]) -> None:
        """Give new clients a place in the pool, with the common start and nothing that is critical."""
        if new := self._pool.add(clients):
            self._masks.add(len(new))

    def plan(self, round_number: int, clients: Sequence[str]) -> Mapping[str, Start]:
        """R2: what is put together for each client."""
        masked = [client for client in clients if self._count and self._pool.has(client)]
        least = self._threshold(round_number) if masked else 0.0
        starts = dict.fromkeys(clients, Start(self._mean, own=True))
        for at in range(0, len(masked), AT_ONCE):
            some = masked[at : at + AT_ONCE]
            few = self._pool.mixtures(some, self._by_group(self._weights(some, least)))
            for client, row in zip(some, self._pool.bank.rows(some).tolist(), strict=True):
                starts[client] = Start(fedcac.together(self._masks.of(row), few[client], self._mean), own=True)
        return starts

    def merge(self, round_number: int, uploads: Mapping[str, Upload]) -> None:
        """R5, R6: find what was critical by making the starts once more; then the pool and the mean."""
        clients, bits = list(uploads), []
        for at in range(0, len(clients), AT_ONCE):
            for client, start in self.plan(round_number, clients[at : at + AT_ONCE]).items():
                after, share = uploads[client].params, self.own.share
                mask = {name: fedcac.critical(start.params[name], after[name], share) for name in self._shapes}
                bits.append(self._masks.pack(mask))
        self._masks.put(self._pool.bank.rows(clients), bits)
        models = [upload.params for upload in uploads.values()]
        self._pool.put(dict(zip(clients, models, strict=True)))
        self._mean = fedavg.aggregate(models, [upload.examples for upload in uploads.values()])

    def mixing_weights(
        self, round_number: int, clients: Sequence[str], uploads: Mapping[str, Upload]
    ) -> MixingWeights | None:
        """Whose models make up critical parameters, for at most `RECORDED` clients; none who has not trained."""
        some, bank = tuple(client for client in clients if self._pool.has(client))[:RECORDED], self._pool.bank
        if not some:
            return None
        weights = self._weights(some, self._threshold(round_number))
        return MixingWeights(some, bank.groups, bank.clients, self._by_group(weights))

    def state_dict(self) -> Params:
        """The pool, the masks and the mean; live, not copied."""
        mean = {f"mean/{name}": tensor for name, tensor in self._mean.items()}
        return {**self._pool.state_dict(), **self._masks.state_dict(), **mean}

    def load_state_dict(self, state: Params) -> None:
        """Continue from what `state_dict` gave.

        Raises:
            ValueError: it is not of this model and these settings, or a model is not finite.
        """
        self._pool, self._masks = self._empty()
        self._mean = {name: tensor.clone() for name, tensor in self.first.items()}
        self.add_clients(read_clients(state))
        self._pool.load(state, self.state_dict())
        self.manifest.check(self._mean, self.split.shared)

    def _empty(self) -> tuple[Pool, Masks]:
        pool = Pool(self.manifest, self.first, resolve_device(self.settings.device), self.setup.storage)
        return pool, Masks(self._shapes)

    def _threshold(self, round_number: int) -> float:
        """R1: of a round, over all pairs of clients that have masks; above every overlap if there is no pair."""
        known = self._pool.learned.nonzero().flatten()
        if len(known) < 2:
            return 2.0
        total, most = 0, 0
        for at in range(0, len(known), RECORDED):
            some = known[at : at + RECORDED]
            shared = self._masks.shared[some][:, known].long()
            shared[torch.arange(len(some)), at + torch.arange(len(some))] = 0
            total, most = total + int(shared.sum()), max(most, int(shared.max()))
        pairs, count = len(known) * (len(known) - 1), max(1, self._count)
        return fedcac.threshold(total / pairs / count, most / count, round_number, self.own.rounds)

    def _weights(self, clients: Sequence[str], least: float) -> Tensor:
        """R1: the weights in u_i, float32 [n, N]."""
        rows = self._pool.bank.rows(clients)
        overlap = fedcac.overlaps(self._masks.shared[rows], self._count)
        return fedcac.similar(overlap, rows, self._pool.learned, least).float()

    def _by_group(self, weights: Tensor) -> Tensor:
        """The same weights for each layer group: [n, L, N]."""
        return weights[:, None].expand(-1, len(self._pool.bank.groups), -1)
