"""The client half of FedTP; see algorithms/fedtp.py."""

from collections.abc import Sequence
from typing import Any, ClassVar, final

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from clients.base import RoundClient
from fedham_flwr.algorithms import fedtp
from fedham_flwr.training.trainer import Loss, Predictor

QUERIES = 1024
"""Samples that are compared with all of the client's own at once, which bounds memory."""


@final
class FedTPClient(RoundClient):
    """R3, R4: train all of the model that came, and of one's own; keep what is personal."""

    one_model: ClassVar[bool] = False

    def personal_groups(self) -> Sequence[str]:
        """The personal head, if there is one; vanilla: self-attention too."""
        groups = self.job.trainer.manifest.group_names
        fedtp.check_model(groups, self.settings.model)
        return fedtp.personal_groups(groups, self.settings.fedtp)

    def adapted_tensors(self) -> Sequence[str]:
        """A novel client trains its projections, if they are generated, and the server learns its embedding from it."""
        generated = self.settings.fedtp.personal == "generated"
        return self.job.trainer.manifest.names([fedtp.GROUP]) if generated else ()

    def loss(self) -> Loss | None:
        """FedRoD: the balanced softmax of the shared head, and the cross-entropy of both heads for the personal one."""
        if self.settings.fedtp.head != "fedrod":
            return None
        counts = torch.tensor(self.job.data.label_counts("train"), dtype=torch.float32, device=self.job.trainer.device)

        def both(model: Any, x: Tensor, y: Tensor) -> Tensor:
            features, targets = model.features(x), y.flatten()
            shared = model.classify(features)
            personal = model.personal_logits(features.detach())
            balanced = fedtp.balanced_cross_entropy(shared.float().flatten(0, -2), targets, counts)
            return balanced + cross_entropy((shared.detach() + personal).flatten(0, -2), targets)

        return both

    def predictor(self) -> Predictor | None:
        """With `knn`, the model's softmax and the vote of the nearest of the client's own training samples."""
        how = self.settings.fedtp
        if not how.knn:
            return None
        keys, targets = self.job.trainer.encode(self.job.data, "train")

        def predict(model: Any, x: Tensor) -> Tensor:
            features = model.features(x)  # once, for the network's logits and for the vote
            logits = model.classify(features)
            if how.head == "fedrod":
                logits = logits + model.personal_logits(features)
            logits = logits.float()
            votes = [
                fedtp.nearest_vote(some, keys, targets, logits.shape[-1], how.knn_neighbours)
                for some in features.float().flatten(0, -2).split(QUERIES)
            ]
            mixed = how.knn_share * torch.cat(votes).view_as(logits) + (1 - how.knn_share) * logits.softmax(-1)
            logs: Tensor = mixed.clamp_min(torch.finfo(mixed.dtype).tiny).log()
            return logs

        return predict
