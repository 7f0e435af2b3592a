"""The models that one client was sent, its own among them, as its meta-model sees and mixes them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from fedham_flwr.algorithms import amn
from fedham_flwr.algorithms.amn import AttentionSettings
from fedham_flwr.core.parameters import Manifest, Params
from fedham_flwr.mixing.bank import Bank
from fedham_flwr.mixing.meta_models import Projection


class Peers:
    """Models of some of all N clients.

    Args:
        settings: of the meta-models.
        manifest: the model's.
        device: where they are mixed.
        seed: the run's.
        own: the client's own place among all N.
        model: its own shared tensors.
        others: place -> shared tensors of a peer.
        ready: bool [1, N], whose models may be mixed.
        first: the common start.

    Attributes:
        bank: the models, in the order of their places.
        places: int64 [M + 1], of its rows among all N clients.
        seen: float32 [N, L, d], centred projections (7); 0 where no model came.
        allowed: bool [1, N], whose models came and may be mixed.
    """

    def __init__(
        self,
        settings: AttentionSettings,
        manifest: Manifest,
        device: torch.device,
        seed: int,
        own: int,
        model: Params,
        others: Mapping[int, Params],
        ready: Tensor,
        first: Params,
    ) -> None:
        self.places = torch.tensor(sorted((*others, own)), dtype=torch.int64)
        ids = [str(place) for place in self.places.tolist()]
        self.bank = Bank(manifest, tuple(model), device)
        self.bank.add(ids, model)
        self.bank.put([name for name in ids if name != str(own)], [others[place] for place in sorted(others)])
        projection = Projection(settings, self.bank, seed)
        p = projection.of(self.bank, range(len(ids)))
        if settings.reference == "start":
            start = Bank(manifest, tuple(model), device)
            start.add(["start"], first)
            p = p - projection.of(start, [0])
        else:
            p = amn.centred(p, torch.ones(len(ids), dtype=torch.bool))
        there = torch.zeros(1, ready.shape[1], dtype=torch.bool)
        there[0, self.places] = True
        self.seen = torch.zeros(there.shape[1], *p.shape[1:])
        self.seen[self.places] = p.float()
        self.allowed = ready & there

    @property
    def groups(self) -> Sequence[str]:
        """The layer groups."""
        return self.bank.groups

    def mix(self, weights: Tensor) -> Params:
        """The mixture of the models.

        Args:
            weights: [1, groups, N].
        """
        hybrid: Params = {}
        for at, group in enumerate(self.bank.groups):
            (row,) = self.bank.mix(group, weights[:, at, self.places])
            hybrid |= self.bank.tensors(group, row.cpu())
        return hybrid

    def inner(self, direction: Params) -> Tensor:
        """Inner products of a direction with each model, by layer group: float64 [1, groups, N]."""
        scores = torch.zeros(1, len(self.groups), self.seen.shape[0], dtype=torch.float64)
        for at, group in enumerate(self.bank.groups):
            scores[0, at, self.places] = self.bank.inner(group, direction)
        return scores
