"""The server half of FedAMP and HeurFedAMP; see algorithms/fedamp.py."""

from collections.abc import Mapping, Sequence
from typing import final

from torch import Tensor

from fedham_flwr.algorithms import fedamp
from fedham_flwr.algorithms.fedamp import FedAMPSettings
from fedham_flwr.core.devices import resolve_device
from fedham_flwr.core.parameters import Params
from fedham_flwr.core.records import MixingWeights
from fedham_flwr.core.trees import read_clients
from fedham_flwr.federation.contract import Setup, Start, Upload
from fedham_flwr.federation.rounds import RoundStrategy
from fedham_flwr.mixing.gram import Gram
from fedham_flwr.mixing.pool import Pool

AT_ONCE = 256
"""Clients whose weights are made at a time, or recorded of an exchange: of all of them they are N squared."""


@final
class FedAMPStrategy(RoundStrategy):
    """The pool of the clients' models, from which a cloud model is mixed for each client."""

    own: FedAMPSettings

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        self._pool, self._gram = self._empty()

    def add_clients(self, clients: Sequence[str]) -> None:
        """Give new clients a place in the pool, with the common start."""
        if new := self._pool.add(clients):
            self._gram.add(len(new))

    def plan(self, round_number: int, clients: Sequence[str]) -> Mapping[str, Start]:
        """R2: the cloud model of each client."""
        mixed: dict[str, Params] = {}
        for at in range(0, len(clients), AT_ONCE):
            some = clients[at : at + AT_ONCE]
            mixed |= self._pool.mixtures(some, self._by_group(self._weights(round_number, some)))
        return {client: Start(mixed[client], own=True) for client in clients}

    def merge(self, round_number: int, uploads: Mapping[str, Upload]) -> None:
        """R5: put the trained models into the pool."""
        self._pool.put({client: upload.params for client, upload in uploads.items()})
        self._gram.update(list(uploads))

    def mixing_weights(self, round_number: int, clients: Sequence[str], uploads: Mapping[str, Upload]) -> MixingWeights:
        """The weights of the cloud models, of at most `AT_ONCE` clients."""
        some, bank = tuple(clients[:AT_ONCE]), self._pool.bank
        return MixingWeights(some, bank.groups, bank.clients, self._by_group(self._weights(round_number, some)))

    def state_dict(self) -> Params:
        """The pool, and the inner products of its models; live, not copied."""
        return {**self._pool.state_dict(), **self._gram.state_dict()}

    def load_state_dict(self, state: Params) -> None:
        """Continue from what `state_dict` gave.

        Raises:
            ValueError: it is not of this model and these settings, or a model is not finite.
        """
        self._pool, self._gram = self._empty()
        self.add_clients(read_clients(state))
        self._pool.load(state, self.state_dict())

    def _empty(self) -> tuple[Pool, Gram]:
        pool = Pool(self.manifest, self.first, resolve_device(self.settings.device), self.setup.storage)
        return pool, Gram(self.manifest, pool.bank, self.first)

    def _weights(self, round_number: int, clients: Sequence[str]) -> Tensor:
        """R1: float32 [n, N]."""
        own, rows, allowed = self.own, self._pool.bank.rows(clients), self._pool.allowed(clients)
        if own.variant == "heuristic":
            cosines = self._gram.model_cosines(rows)
            return fedamp.heuristic(cosines, rows, allowed, own.self_weight, own.sharpness).float()
        alpha = fedamp.step_of(own, round_number)
        return fedamp.attention(self._gram.squares(rows), rows, allowed, alpha, own.sigma).float()

    def _by_group(self, weights: Tensor) -> Tensor:
        """The same weights for each layer group: [n, L, N]."""
        return weights[:, None].expand(-1, len(self._pool.bank.groups), -1)
