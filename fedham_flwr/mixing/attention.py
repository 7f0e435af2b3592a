"""The pool as the meta-models of FedHAM and AMN see it: projections of the clients' models; see algorithms/amn.py."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fedham_flwr.algorithms.amn import AttentionSettings, centred
from fedham_flwr.mixing.meta_models import Projection
from fedham_flwr.mixing.pool import Pool


class Projections:
    """The projections of a pool's models, kept up to date.

    Args:
        settings: of the meta-models.
        pool: whose models are looked at.
        seed: the run's.

    Attributes:
        units: L, the layer groups, or 1 for the whole model.
    """

    def __init__(self, settings: AttentionSettings, pool: Pool, seed: int) -> None:
        self._settings, self._pool = settings, pool
        self.units = len(pool.bank.groups) if settings.unit == "layer" else 1
        self._projection = Projection(settings, pool.bank, seed)
        self._p = torch.empty(0, self.units, settings.feature_dim, dtype=torch.float64)
        self._start = self._p  # the projection of the common start; none before the first client

    def add(self, clients: Sequence[str]) -> None:
        """Give new clients the projection of the common start, which is what the pool has of them."""
        if not len(self._start):
            self._start = self._projection.of(self._pool.bank, [len(self._p)])
        self._p = torch.cat([self._p, self._start.expand(len(clients), -1, -1)])

    def seen(self) -> Tensor:
        """The projections less their mean or that of the common start: float32 [N, L, d]."""
        if self._settings.reference == "start":
            return (self._p - self._start).float()
        return centred(self._p, self._pool.ready).float()

    def update(self, clients: Sequence[str]) -> None:
        """Project the models of these clients anew."""
        rows = self._pool.bank.rows(clients)
        self._p[rows] = self._projection.of(self._pool.bank, rows.tolist())

    def update_all(self) -> None:
        """Project all models anew."""
        self._p = self._projection.of(self._pool.bank, range(len(self._pool.bank.clients)))
