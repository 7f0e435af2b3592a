"""The samples of one split of one client, where its model is, and batches of them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fedham_flwr.data.batches import Kind, inputs_and_targets
from fedham_flwr.training.guard import rows_of
from fedham_flwr.training.local import Samples


@dataclass(frozen=True)
class SplitRows:
    """The rows of a split.

    Attributes:
        features: as they are stored, with the split's among them.
        labels: theirs.
        index: int64 [n], the split's numbers in these.
        kind: what the samples are.
        device: where the model is.
    """

    features: Tensor
    labels: Tensor
    index: Tensor
    kind: Kind
    device: torch.device

    @classmethod
    def of(cls, samples: Samples, split: str, device: torch.device) -> SplitRows:
        """Where they lie; of a GPU only the split itself, moved there once.

        Args:
            samples: the client's data.
            split: of them.
            device: where the model is.
        """
        features, labels, index = rows_of(samples, split)
        if device.type != "cpu":
            features, labels, index = features[index].to(device), labels[index].to(device), torch.arange(len(index))
        return cls(features, labels, index, samples.kind, device)

    def take(self, chosen: Tensor) -> tuple[Tensor, Tensor]:
        """Inputs and targets of some samples on the model's device, by numbers that may be on another one."""
        at = chosen.to(self.features.device)
        x, y = self.features.index_select(0, at), self.labels.index_select(0, at)  # 20 times as fast as features[at]
        return inputs_and_targets(x.to(self.device), y.to(self.device), self.kind)
