"""The client half of FedTP; see algorithms/fedtp.py."""

from __future__ import annotations

from typing import final

from fedham_flwr.algorithms.fedrod import BothHeads
from fedham_flwr.algorithms.fedtp import FedTPSettings
from fedham_flwr.algorithms.knnper import voting
from fedham_flwr.core.parameters import Params
from fedham_flwr.federation.client import RoundClient
from fedham_flwr.federation.contract import Outcome
from fedham_flwr.models.heads import head_name
from fedham_flwr.training.trainer import Loss, Predictor


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
        trainer = self.job.trainer
        return BothHeads(head_name(trainer.manifest), self.job.data.label_counts("train"), trainer.device)

    def predictor(self) -> Predictor | None:
        """With `knn`, the model's softmax and the vote of the nearest of the client's own training samples."""
        own = self.own
        if not own.knn:
            return None
        trainer = self.job.trainer
        keys, targets = trainer.encode(self.job.data, "train")
        return voting(head_name(trainer.manifest), keys, targets, own.knn_neighbours, own.knn_share)
