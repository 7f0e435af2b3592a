"""Small convolutional networks. Shape letters: b batch, c channels, h height, w width, k classes.

The rectifier stands after the pooling, where there is a quarter of the work for it: the two commute, bit for bit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

from annotated_types import Ge, Le
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import max_pool2d, relu

from fedham_flwr.core.parameters import LayerGroup, module_group
from fedham_flwr.models.grafts import Graftable, Place


class CNN(Graftable):
    """conv5x5 32, pool, conv5x5 64, pool, fc 512, fc k: the network of the FedAvg line of papers, as in PFLlib.

    878,538 parameters for 3 x 32 x 32 images and 10 classes, 582,026 for 1 x 28 x 28.
    """

    smallest: ClassVar[int] = 16
    widths: ClassVar[tuple[int, int, int]] = (32, 64, 512)
    kernel: ClassVar[int] = 5
    padding: ClassVar[int] = 0

    def __init__(self, shape: tuple[int, ...], outputs: int) -> None:
        super().__init__()
        channels, height, width = shape
        first, second, hidden = self.widths
        self.conv1 = nn.Conv2d(channels, first, self.kernel, padding=self.padding)
        self.conv2 = nn.Conv2d(first, second, self.kernel, padding=self.padding)
        lost = self.kernel - 1 - 2 * self.padding
        self.fc1 = nn.Linear(second * after_convs(height, lost) * after_convs(width, lost), hidden)
        self.fc2 = nn.Linear(hidden, outputs)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b k"]:
        """Logits of a batch of images."""
        x = self.after("conv1", relu(max_pool2d(self.conv1(x), 2)))
        x = self.after("conv2", relu(max_pool2d(self.conv2(x), 2)))
        x = self.after("fc1", relu(self.fc1(x.flatten(1))))
        logits: Tensor = self.fc2(x)
        return logits

    def places(self) -> Mapping[str, Place]:
        """Behind each pooling, and behind the hidden layer."""
        first, second, hidden = self.widths
        return {"conv1": Place(first, True), "conv2": Place(second, True), "fc1": Place(hidden, False)}

    def layer_groups(self) -> Sequence[LayerGroup]:
        """One group for each layer that owns parameters."""
        return self.with_graft(module_group(self, name) for name in ("conv1", "conv2", "fc1", "fc2"))


class DigitsCNN(CNN):
    """conv3x3 16, pool, conv3x3 32, pool, fc 64, fc k, with padding: for images of 4 to 15 pixels, such as digits.

    13,706 parameters for 1 x 8 x 8 images and 10 classes.
    """

    smallest: ClassVar[int] = 4
    widths: ClassVar[tuple[int, int, int]] = (16, 32, 64)
    kernel: ClassVar[int] = 3
    padding: ClassVar[int] = 1


@dataclass(frozen=True)
class TransferCNNSettings:
    """Settings under `transfer-cnn.`.

    Attributes:
        padding: pixels of zeros around the input of each convolution; 2 keeps the size.
    """

    padding: Annotated[int, Ge(0), Le(2)] = 0


class TransferCNN(Graftable):
    """conv5x5 64, pool, conv5x5 128, pool, fc 1024, fc 256, fc k: the network of federated transfer learning.

    3,752,586 parameters for 3 x 32 x 32 images and 10 classes, 8,864,394 with padding 2.

    Source: Zhang and Liu, "Personalized Federated Learning with Attention Mechanisms", 2022, which gives neither the
    padding nor the activations nor the kind of pooling: ReLU and the maximum here.

    Args:
        shape: (channels, height, width) of one image.
        outputs: of the last layer.
        settings: its own.
    """

    Settings: ClassVar[type | None] = TransferCNNSettings
    widths: ClassVar[tuple[int, int, int, int]] = (64, 128, 1024, 256)

    def __init__(
        self, shape: tuple[int, ...], outputs: int, settings: TransferCNNSettings = TransferCNNSettings()
    ) -> None:
        super().__init__()
        channels, height, width = shape
        first, second, hidden1, hidden2 = self.widths
        lost = 4 - 2 * settings.padding
        self.conv1 = nn.Conv2d(channels, first, 5, padding=settings.padding)
        self.conv2 = nn.Conv2d(first, second, 5, padding=settings.padding)
        self.fc1 = nn.Linear(second * after_convs(height, lost) * after_convs(width, lost), hidden1)
        self.fc2 = nn.Linear(hidden1, hidden2)
        self.fc3 = nn.Linear(hidden2, outputs)

    @classmethod
    def least(cls, settings: TransferCNNSettings) -> int:
        """Side of the smallest images, in pixels: 16, 10 or 4. One pixel is left of them after both poolings."""
        return 16 - 6 * settings.padding

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b k"]:
        """Logits of a batch of images."""
        x = self.after("conv1", relu(max_pool2d(self.conv1(x), 2)))
        x = self.after("conv2", relu(max_pool2d(self.conv2(x), 2)))
        x = self.after("fc1", relu(self.fc1(x.flatten(1))))
        x = self.after("fc2", relu(self.fc2(x)))
        logits: Tensor = self.fc3(x)
        return logits

    def places(self) -> Mapping[str, Place]:
        """Behind each pooling, and behind each hidden layer."""
        names = ("conv1", "conv2", "fc1", "fc2")
        return {n: Place(width, n.startswith("conv")) for n, width in zip(names, self.widths, strict=True)}

    def layer_groups(self) -> Sequence[LayerGroup]:
        """One group for each layer that owns parameters."""
        return self.with_graft(module_group(self, name) for name in ("conv1", "conv2", "fc1", "fc2", "fc3"))


def after_convs(pixels: int, lost: int = 4) -> int:
    """Side of the feature map after twice (convolution, 2x2 pooling).

    Args:
        pixels: side of the image.
        lost: pixels by which one convolution shrinks a side; 4 for 5x5 without padding.
    """
    return ((pixels - lost) // 2 - lost) // 2
