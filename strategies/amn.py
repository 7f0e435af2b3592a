"""The server half of AMN; see algorithms/amn.py."""

from collections.abc import Mapping, Sequence
from typing import final

import torch

from fedham_flwr.core.parameters import Params
from fedham_flwr.core.records import MixingWeights
from fedham_flwr.core.seeding import torch_stream
from fedham_flwr.federation.wire import Upload
from fedham_flwr.mixing.meta_models import MetaModels, by_group, by_unit
from strategies.attention import AttentionStrategy


@final
class AMNStrategy(AttentionStrategy):
    """The pool of the clients' models, and a meta-model for each client that says how they are mixed."""

    def begin(self, shared: Params) -> None:
        """Start from one common model."""
        self.how = self.settings.amn
        super().begin(shared)
        self._meta = MetaModels(self.how, self.units)

    def admit(self, clients: Sequence[str]) -> None:
        """Give new clients a projection of the common start and a meta-model."""
        super().admit(clients)
        streams = [torch_stream(self.settings.seed, "meta-model", client=client) for client in clients]
        self._meta.add(streams, len(self.bank.clients))

    def plan(self, round_number: int, clients: Sequence[str]) -> dict[str, Params]:
        """The hybrid model of each client."""
        return self.mixtures(clients, self.mixing_weights(round_number, clients, {}).weights)  # R2

    def merge(self, round_number: int, uploads: Mapping[str, Upload]) -> None:
        """Put the trained models into the pool, and let the meta-models learn from where training went.

        Raises:
            UserError: most meta-models diverge.
        """
        clients, own = list(uploads), self.bank.rows(list(uploads))
        looked = self._meta.attend(own, self.seen(), own, self.allowed(clients))
        weights = by_group(looked.effective(own), len(self.bank.groups))
        training = self.settings.local_training()
        reach = torch.tensor([training.reach(upload.examples) for upload in uploads.values()], dtype=torch.float64)
        scores = by_unit(self.absorb(uploads, weights), self.how.unit) / reach[:, None, None]  # R5
        self._meta.step(own, looked, own, scores)  # R6

    def mixing_weights(self, round_number: int, clients: Sequence[str], uploads: Mapping[str, Upload]) -> MixingWeights:
        """The effective rows: weights over peers, and the gate as the client's weight of itself."""
        own = self.bank.rows(clients)
        rows = self._meta.attend(own, self.seen(), own, self.allowed(clients)).effective(own)  # R1
        return MixingWeights(tuple(clients), self.bank.groups, self.bank.clients, by_group(rows, len(self.bank.groups)))

    def state_dict(self) -> Params:
        """The pool, the meta-models with their optimiser, and who may be mixed; live, not copied."""
        return {**super().state_dict(), **{f"meta/{name}": t for name, t in self._meta.state_dict().items()}}
