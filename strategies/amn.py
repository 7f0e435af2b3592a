"""The server half of AMN; see algorithms/amn.py."""

from collections.abc import Mapping, Sequence
from typing import final

import torch
from torch import Tensor

from fedham_flwr.algorithms.amn import AMNSettings, Rows
from fedham_flwr.core.devices import resolve_device
from fedham_flwr.core.parameters import Params
from fedham_flwr.core.records import MixingWeights
from fedham_flwr.core.seeding import torch_stream
from fedham_flwr.core.trees import read_clients, side_by_side
from fedham_flwr.federation.contract import Setup, Start, Upload
from fedham_flwr.federation.rounds import RoundStrategy
from fedham_flwr.mixing.attention import Lists, Projections
from fedham_flwr.mixing.meta_models import MetaModels
from fedham_flwr.mixing.pool import Pool
from fedham_flwr.mixing.rows import Row, hybrids, learn, mixing_weights

AT_ONCE = 256
"""With `candidates`, clients whose rows are made at a time: each looks at projections of its own."""


@final
class AMNStrategy(RoundStrategy):
    """The pool of the clients' models, and a meta-model for each client that weighs who is mixed into it.

    Raises:
        UserError: local training is not by plain SGD.
    """

    own: AMNSettings

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        self.settings.local_training(1).check_plain('strategy="amn"')
        self._pool, self._projections, self._meta = self._empty()

    def add_clients(self, clients: Sequence[str]) -> None:
        """Give new clients a place in the pool, a projection of the common start and a meta-model."""
        if new := self._pool.add(clients):
            self._projections.add(new)
            self._start(self._meta, new)

    def plan(self, round_number: int, clients: Sequence[str]) -> Mapping[str, Start]:
        """The hybrid model of each client."""
        mixed = hybrids(self._pool, self._rows(round_number, clients))  # R2
        return {client: Start(mixed[client], own=True) for client in clients}

    def merge(self, round_number: int, uploads: Mapping[str, Upload]) -> None:
        """Put the trained models into the pool, and let the meta-models learn from where training went.

        Raises:
            UserError: most meta-models diverge.
        """
        clients, own = list(uploads), self._pool.bank.rows(list(uploads))
        lists, looked = self._look(round_number, clients)
        training = self.settings.local_training(round_number)
        reach = torch.tensor([training.reach(upload.samples) for upload in uploads.values()], dtype=torch.float64)
        models = {client: upload.params for client, upload in uploads.items()}
        rows = lists.rows(self._projections.units.rows(looked.effective(lists.own)))
        found = learn(self._pool, models, rows)  # R5
        self._projections.update(rows, [upload.examples for upload in uploads.values()])
        scores = self._projections.units.scores(side_by_side(list(found.values())))
        prior = self._prior(clients, lists) if self.own.prior_penalty else None
        self._meta.step(own, looked, lists.own, scores / reach[:, None, None], prior)  # R6

    def mixing_weights(self, round_number: int, clients: Sequence[str], uploads: Mapping[str, Upload]) -> MixingWeights:
        """The effective rows: weights over peers, and the gate as the client's weight of itself."""
        return mixing_weights(self._pool, self._rows(round_number, clients))

    def state_dict(self) -> Params:
        """The pool, what training added to its models, and the meta-models with their optimiser; live, not copied."""
        psi = {f"meta/{name}": tensor for name, tensor in self._meta.state_dict().items()}
        return {**self._pool.state_dict(), **self._projections.state_dict(), **psi}

    def load_state_dict(self, state: Params) -> None:
        """Continue from a pool and its meta-models; the projections are made anew.

        Raises:
            ValueError: it is not of this model and these settings, or a model is not finite.
        """
        self._pool, self._projections, self._meta = self._empty()
        self._projections.check(state, "amn")
        self.add_clients(read_clients(state))
        self._pool.load(state, self.state_dict())
        self._projections.update_all()

    def _look(self, round_number: int, clients: Sequence[str]) -> tuple[Lists, Rows]:
        """R1: whom some clients look at, and what their meta-models make of it."""
        lists = self._projections.lists(round_number, clients)
        rows = self._pool.bank.rows(clients)
        return lists, self._meta.attend(rows, lists.seen, lists.own, lists.allowed)

    def _rows(self, round_number: int, clients: Sequence[str]) -> dict[str, Row]:
        """The clients' effective rows."""
        found: dict[str, Row] = {}
        step = AT_ONCE if self.own.candidates else max(1, len(clients))
        for at in range(0, len(clients), step):
            lists, looked = self._look(round_number, clients[at : at + step])
            found |= lists.rows(self._projections.units.rows(looked.effective(lists.own)))
        return found

    def _start(self, meta: MetaModels, clients: Sequence[str]) -> None:
        """Add the clients' meta-models as at the start."""
        streams = [torch_stream(self.settings.seed, "meta-model", client=client) for client in clients]
        meta.add(streams, self._projections.width)

    def _prior(self, clients: Sequence[str], lists: Lists) -> Tensor:
        """The rows that new meta-models of the clients would make: float [n, L, M]."""
        fresh = MetaModels(self.own, len(self._projections.units))
        self._start(fresh, clients)
        looked = fresh.attend(torch.arange(len(clients)), lists.seen, lists.own, lists.allowed)
        return looked.effective(lists.own)

    def _empty(self) -> tuple[Pool, Projections, MetaModels]:
        pool = Pool(self.manifest, self.first, resolve_device(self.settings.device), self.setup.storage)
        projections = Projections(self.own, pool, self.settings.seed)
        return pool, projections, MetaModels(self.own, len(projections.units))
