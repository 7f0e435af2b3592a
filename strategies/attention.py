"""What the server halves of FedHAM and AMN share: the projections of the pool, and whose models a client may get."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from fedham_flwr.algorithms.amn import AttentionSettings, centred
from fedham_flwr.core.parameters import Params
from fedham_flwr.federation.wire import Upload
from fedham_flwr.mixing.meta_models import Projection
from strategies.mixing import MixingStrategy


class AttentionStrategy(MixingStrategy):
    """The pool, as the meta-models see it.

    Attributes:
        how: the method's settings; set before `begin`.
        units: L.
    """

    how: AttentionSettings

    def begin(self, shared: Params) -> None:
        """Start from one common model."""
        super().begin(shared)
        self.units = len(self.bank.groups) if self.how.unit == "layer" else 1
        self._projection = Projection(self.how, self.bank, self.settings.seed)
        self._p = torch.empty(0, self.units, self.how.feature_dim, dtype=torch.float64)
        self._start = self._p  # the projection of the common start; none before the first client

    def admit(self, clients: Sequence[str]) -> None:
        """Give new clients the projection of the common start, which is what the bank has of them."""
        if not len(self._start):
            self._start = self._projection.of(self.bank, [len(self._p)])
        self._p = torch.cat([self._p, self._start.expand(len(clients), -1, -1)])

    def seen(self) -> Tensor:
        """The pool's projections less their mean or that of the common start: float32 [N, L, d]."""
        if self.how.reference == "start":
            return (self._p - self._start).float()
        return centred(self._p, self.ready).float()

    def allowed(self, clients: Sequence[str]) -> Tensor:
        """Whose models each client may get: bool [n, N]. Its own among them if it has trained, or was there first."""
        return self.ready.expand(len(clients), -1)

    def absorb(self, uploads: Mapping[str, Upload], weights: Tensor, left_out: Tensor | None = None) -> Tensor:
        """As for every bank; and the projections of the trained models."""
        scores = super().absorb(uploads, weights, left_out)
        rows = self.bank.rows(list(uploads))
        self._p[rows] = self._projection.of(self.bank, rows.tolist())
        return scores

    def load_state_dict(self, state: Params) -> None:
        """Continue from a pool; its projections are made anew.

        Raises:
            ValueError: it is not that of this model and these settings, or a model is not finite.
        """
        super().load_state_dict(state)
        self._p = self._projection.of(self.bank, range(len(self.bank.clients)))
