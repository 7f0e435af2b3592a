"""The client half of FedTP; see algorithms/fedtp.py."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, final

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from fedham_flwr.algorithms import fedtp
from fedham_flwr.algorithms.fedtp import FedTPSettings
from fedham_flwr.core.parameters import Params
from fedham_flwr.federation.client import RoundClient
from fedham_flwr.federation.contract import Outcome
from fedham_flwr.training.trainer import Loss, Predictor

QUERIES = 1024
"""Samples that are compared with all of the client's own at once, which bounds memory."""


class BothHeads:
    """FedRoD's loss: the balanced softmax of the shared head, and the cross-entropy of both for the personal one.

    Args:
        counts: the client's training samples of each class.
        device: where the model is.
    """

    def __init__(self, counts: Sequence[int], device: torch.device) -> None:
        self.counts = torch.tensor(counts, dtype=torch.float32, device=device)

    def __call__(self, model: Any, x: Tensor, y: Tensor) -> Tensor:
        """The mean loss of a batch, in nats."""
        shared, personal, targets = self._logits(model, x, y)
        balanced = fedtp.balanced_cross_entropy(shared.float(), targets, self.counts)
        return balanced + cross_entropy(shared.detach() + personal, targets)

    def stacked(self, others: Sequence[BothHeads]) -> Callable[[Any, Tensor, Tensor, int], Tensor]:
        """The loss of each prediction, for several clients: of a folded batch [m b, ...] of the first m.

        Args:
            others: those of all clients, in order.
        """
        logs = torch.stack([each.counts for each in others]).log()

        def each(model: Any, x: Tensor, y: Tensor, clients: int) -> Tensor:
            shared, personal, targets = self._logits(model, x, y)
            prior = logs[:clients].repeat_interleave(len(targets) // clients, 0)
            balanced = cross_entropy(shared.float() + prior, targets, reduction="none")
            both = cross_entropy(shared.detach() + personal, targets, reduction="none")
            return (balanced + both).view(len(y), -1)

        return each

    def _logits(self, model: Any, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Of the shared head and of the personal one alone, [p, k], and the targets [p] of p predictions."""
        features = model.features(x)
        shared, personal = model.classify(features), model.personal_logits(features.detach())
        return shared.flatten(0, -2), personal.flatten(0, -2), y.flatten()


@final
class FedTPClient(RoundClient):
    """R3, R4: train all of the model that came, and of one's own; keep what is personal."""

    own: FedTPSettings

    def train(self, start: Params) -> Outcome:
        """R3: with FedRoD by the loss of both heads, else by the task's."""
        return self.outcome(self.fit(start, loss=self.loss()))

    def loss(self) -> Loss | None:
        """FedRoD: the balanced softmax of the shared head, and the cross-entropy of both heads for the personal one."""
        if self.own.head != "fedrod":
            return None
        return BothHeads(self.job.data.label_counts("train"), self.job.trainer.device)

    def predictor(self) -> Predictor | None:
        """With `knn`, the model's softmax and the vote of the nearest of the client's own training samples."""
        own = self.own
        if not own.knn:
            return None
        keys, targets = self.job.trainer.encode(self.job.data, "train")

        def predict(model: Any, x: Tensor) -> Tensor:
            features = model.features(x)  # once, for the network's logits and for the vote
            logits = model.classify(features)
            if own.head == "fedrod":
                logits = logits + model.personal_logits(features)
            logits = logits.float()
            votes = [
                fedtp.nearest_vote(some, keys, targets, logits.shape[-1], own.knn_neighbours)
                for some in features.float().flatten(0, -2).split(QUERIES)
            ]
            mixed = own.knn_share * torch.cat(votes).view_as(logits) + (1 - own.knn_share) * logits.softmax(-1)
            logs: Tensor = mixed.clamp_min(torch.finfo(mixed.dtype).tiny).log()
            return logs

        return predict
