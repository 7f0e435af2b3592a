"""A convolution over time. Shape letters: b batch, c channels with their gaps, t time, k classes.

The rectifier stands after the pooling, where there is half of the work for it: the two commute, bit for bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, ClassVar

import torch
from annotated_types import Gt
from jaxtyping import Float
from pydantic import AfterValidator
from torch import Tensor, nn
from torch.nn.functional import max_pool1d, relu

from fedham_flwr.core.parameters import LayerGroup, module_group
from fedham_flwr.core.shapes import dimensions
from fedham_flwr.models.network import Network


def _odd(kernel: int) -> int:
    if kernel % 2 == 0:
        raise ValueError("wanted an odd number, so that the convolution keeps the length")
    return kernel


@dataclass(frozen=True)
class CNN1dSettings:
    """Settings under `cnn1d.`.

    Attributes:
        width: channels of the first convolution, of which the second has twice as many, and so on up to 4 times.
        depth: convolutions; behind each the time is halved, while there are 2 steps.
        kernel: steps of a convolution, odd.
    """

    width: Annotated[int, Gt(0)] = 32
    depth: Annotated[int, Gt(0)] = 3
    kernel: Annotated[int, Gt(0), AfterValidator(_odd)] = 5


class CNN1d(Network):
    """conv1, conv2, ..., each with ReLU and pooling, then the mean and the maximum over time, and a linear head.

    53,412 parameters for 3 channels and 4 classes with the default settings, of any length.

    Args:
        shape: (2 C, T, 1, 0) of a series of C channels; or (channels, time) of arrays.
        outputs: of the head.
        settings: its own.
    """

    kinds: ClassVar[tuple[str, ...]] = ("series", "table")
    Settings: ClassVar[type | None] = CNN1dSettings

    def __init__(self, shape: tuple[int, ...], outputs: int, settings: CNN1dSettings = CNN1dSettings()) -> None:
        super().__init__()
        channels, _ = dimensions(shape)
        self._convolutions = tuple(f"conv{number + 1}" for number in range(settings.depth))
        for number, name in enumerate(self._convolutions):
            width = settings.width * min(2**number, 4)
            self.add_module(name, nn.Conv1d(channels, width, settings.kernel, padding=settings.kernel // 2))
            channels = width
        self.head = nn.Linear(2 * channels, outputs)

    def forward(self, x: Float[Tensor, "b c t"]) -> Float[Tensor, "b k"]:
        """Logits of a batch of series, as `batches.channels_with_gaps` makes them."""
        for name in self._convolutions:
            x = self.get_submodule(name)(x)
            x = relu(max_pool1d(x, 2) if x.shape[2] > 1 else x)
        logits: Tensor = self.head(torch.cat([x.mean(2), x.amax(2)], dim=1))
        return logits

    def layer_groups(self) -> Sequence[LayerGroup]:
        """One group for each layer; the convolutions are low-level."""
        convolutions = [replace(module_group(self, name), low_level=True) for name in self._convolutions]
        return (*convolutions, module_group(self, "head"))
