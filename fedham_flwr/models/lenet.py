"""LeNet of pFedHN and pFedLA. Shape letters: b batch, c channels, h height, w width, k classes.

Source: Shamsian et al., "Personalized Federated Learning using Hypernetworks", ICML 2021, authors' code; the sizes of
Ma et al., "Layer-wised Model Aggregation for Personalized Federated Learning", CVPR 2022, follow from its Table 3.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import max_pool2d, relu

from fedham_flwr.core.parameters import LayerGroup, module_group
from fedham_flwr.models.cnn import after_convs
from fedham_flwr.models.grafts import Graftable, Place


class LeNet(Graftable):
    """conv5x5 16, pool, conv5x5 32, pool, fc 120, fc 84, fc k.

    121,182 parameters for 3 x 32 x 32 images and 10 classes, 85,822 for 1 x 28 x 28.
    """

    smallest: ClassVar[int] = 16
    batch_norm: ClassVar[bool] = False

    def __init__(self, shape: tuple[int, ...], outputs: int) -> None:
        super().__init__()
        channels, height, width = shape
        self.conv1 = nn.Conv2d(channels, 16, 5)
        self.bn1 = nn.BatchNorm2d(16) if self.batch_norm else nn.Identity()
        self.conv2 = nn.Conv2d(16, 32, 5)
        self.bn2 = nn.BatchNorm2d(32) if self.batch_norm else nn.Identity()
        self.fc1 = nn.Linear(32 * after_convs(height) * after_convs(width), 120)
        self.fc2 = nn.Linear(120, 84)
        self.fc3 = nn.Linear(84, outputs)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b k"]:
        """Logits of a batch of images."""
        first, second = self._blocks
        x = self.after(first, relu(max_pool2d(self.bn1(self.conv1(x)), 2)))
        x = self.after(second, relu(max_pool2d(self.bn2(self.conv2(x)), 2)))
        x = self.after("fc1", relu(self.fc1(x.flatten(1))))
        x = self.after("fc2", relu(self.fc2(x)))
        logits: Tensor = self.fc3(x)
        return logits

    def places(self) -> Mapping[str, Place]:
        """Behind each pooling, by the last group before it, and behind each hidden layer."""
        first, second = self._blocks
        return {first: Place(16, True), second: Place(32, True), "fc1": Place(120, False), "fc2": Place(84, False)}

    def layer_groups(self) -> Sequence[LayerGroup]:
        """One group for each layer that owns parameters; a batch normalisation is a group of its own."""
        names = ("conv1", "bn1", "conv2", "bn2", "fc1", "fc2", "fc3")
        groups = [module_group(self, name) for name in names]
        return self.with_graft(group for group in groups if group.parameters)

    @property
    def _blocks(self) -> tuple[str, str]:
        """The last layer group of each convolution with what belongs to it."""
        return ("bn1", "bn2") if self.batch_norm else ("conv1", "conv2")


class LeNetBN(LeNet):
    """LeNet with batch normalisation after each convolution: 121,278 parameters for 3 x 32 x 32 and 10 classes."""

    batch_norm: ClassVar[bool] = True
