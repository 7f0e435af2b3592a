"""The server half of FedAGHN; see algorithms/fedaghn.py."""

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from typing import NamedTuple, final

import torch
from torch import Tensor

from fedham_flwr.algorithms import fedaghn
from fedham_flwr.algorithms.fedaghn import FedAGHNSettings, Rows
from fedham_flwr.core.devices import resolve_device
from fedham_flwr.core.errors import UserError
from fedham_flwr.core.parameters import Params, finite_rows
from fedham_flwr.core.records import MixingWeights
from fedham_flwr.core.trees import delta, read_clients
from fedham_flwr.federation.contract import Setup, Start, Upload
from fedham_flwr.federation.rounds import RoundStrategy
from fedham_flwr.mixing.pool import Pool
from fedham_flwr.mixing.updates import Updates

log = logging.getLogger("fedham_flwr")


class Weighed(NamedTuple):
    """Who is mixed into whom: for n clients, L layer groups and N peers."""

    own: Tensor  # int64 [n], the clients' own places
    alike: Tensor  # float64 [n, L, N]
    allowed: Tensor  # bool [n, N]
    rows: Rows  # float64


@final
class FedAGHNStrategy(RoundStrategy):
    """The pool of the clients' models, their last updates, and a temperature and a self-weight for each layer."""

    own: FedAGHNSettings

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        self._pool, self._updates, self._scalars = self._empty()

    def add_clients(self, clients: Sequence[str]) -> None:
        """Give new clients a place in the pool, an update of 0, and scalars as at the start."""
        if new := self._pool.add(clients):
            self._updates.add(new)
            first = {"beta": self.own.beta, "gamma": self.own.gamma}
            shape = (len(new), len(self._pool.bank.groups))
            self._scalars = {n: torch.cat([t, torch.full(shape, first[n])]) for n, t in self._scalars.items()}

    def plan(self, round_number: int, clients: Sequence[str]) -> Mapping[str, Start]:
        """The mixture for each client."""
        mixed = self._pool.mixtures(clients, self._weigh(clients).rows.weights.float())  # R2
        return {client: Start(mixed[client], own=True) for client in clients}

    def merge(self, round_number: int, uploads: Mapping[str, Upload]) -> None:
        """Put the trained models into the pool, keep the updates, and let the scalars learn.

        Raises:
            UserError: the scalars of most clients diverge.
        """
        clients, models = list(uploads), {client: upload.params for client, upload in uploads.items()}
        weighed = self._weigh(clients)
        weights = weighed.rows.weights.float()
        starts = self._pool.mixtures(clients, weights)
        scores = self._pool.absorb(models, weights)  # R5
        self._updates.put(clients, [delta(starts[client], models[client]) for client in clients])
        self._learn(weighed, scores)  # R6

    def mixing_weights(self, round_number: int, clients: Sequence[str], uploads: Mapping[str, Upload]) -> MixingWeights:
        """The rows of the mixtures."""
        bank = self._pool.bank
        return MixingWeights(tuple(clients), bank.groups, bank.clients, self._weigh(clients).rows.weights.float())

    def state_dict(self) -> Params:
        """The pool, the updates and the scalars; live, not copied."""
        return {**self._pool.state_dict(), **self._updates.state_dict(), **self._scalars}

    def load_state_dict(self, state: Params) -> None:
        """Continue from what `state_dict` gave.

        Raises:
            ValueError: it is not of this model and these settings, or a model is not finite.
        """
        self._pool, self._updates, self._scalars = self._empty()
        self.add_clients(read_clients(state))
        self._pool.load(state, self.state_dict())
        self._updates.check()

    def _weigh(self, clients: Sequence[str]) -> Weighed:
        """R1 for some clients."""
        own, allowed = self._pool.bank.rows(clients), self._pool.allowed(clients)
        alike, beta, gamma = self._updates.alike(own), self._scalars["beta"][own], self._scalars["gamma"][own]
        return Weighed(own, alike, allowed, fedaghn.attend(beta.double(), gamma.double(), alike, own, allowed))

    def _learn(self, weighed: Weighed, scores: Tensor) -> None:
        """R6. A client whose scalars would not be finite keeps them: that is its own model's fault."""
        slopes = fedaghn.gradient(weighed.rows, weighed.alike, weighed.own, weighed.allowed, scores)
        rate = self.own.learning_rate * (1 if self.own.direction == "descent" else -1)
        beta, gamma = (
            (self._scalars[n][weighed.own].double() - rate * s).float()
            for n, s in zip(("beta", "gamma"), slopes, strict=True)
        )
        good = finite_rows(beta) & finite_rows(gamma)
        if 2 * int(good.sum()) < len(good):
            raise UserError(f"the scalars diverged: lower fedaghn.learning-rate={self.own.learning_rate:g}")
        if not bool(good.all()):
            log.warning("%s clients' scalars would have diverged, and stay as they were", int((~good).sum()))
        self._scalars["beta"][weighed.own[good]] = beta[good]
        self._scalars["gamma"][weighed.own[good]] = gamma[good].clamp_min(0.0)

    def _empty(self) -> tuple[Pool, Updates, Params]:
        """No client: the pool, the updates and the scalars [N, L]."""
        device, storage = resolve_device(self.settings.device), self.setup.storage
        half = dataclasses.replace(storage, most=storage.most / 2)  # for each of the two arrays
        pool = Pool(self.manifest, self.first, device, half)
        none = torch.empty(0, len(pool.bank.groups))
        return pool, Updates(self.manifest, self.first, device, half), {"beta": none, "gamma": none}
