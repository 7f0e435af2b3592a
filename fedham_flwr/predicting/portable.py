"""A model as one module from raw inputs to probabilities, as other programs take it.

| kind of data | input | |
| --- | --- | --- |
| image | uint8 [b, H, W, C] | pixels, of the size of the training |
| table | float64 [b, columns] | raw numbers, NaN where one is missing; see `raw_rows` |
| series | float32 [b, T, C] | raw numbers, NaN where one is missing |
| text | int64 [b, T] | numbers of tokens, as the recipe makes them |
| own | float32 [b, ...], or uint8 of images | as the user's function gave them |

Letters: b batch, H W C of an image, T steps or tokens, C channels.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fedham_flwr.core import shapes
from fedham_flwr.core.errors import UserError
from fedham_flwr.data.batches import channels_with_gaps, to_float
from fedham_flwr.data.kinds.table import FARTHEST
from fedham_flwr.predicting import raw_rows
from fedham_flwr.predicting.exported import Exported

SAMPLES = 5
"""Of a batch with which a model is tried."""


class Steps(nn.Module):
    """Raw series as the network sees them: standardised by channel, with flags where a value is missing.

    Args:
        recipe: of the client.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, recipe: Mapping[str, Any]) -> None:
        super().__init__()
        for name in ("mean", "std"):
            self.register_buffer(name, torch.tensor(recipe["scaling"][name], dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        """float32 [b, T, C] -> [b, 2 C, T]; in 64 bits in between, as the data were scaled."""
        scaled = ((x.double() - self.mean) / self.std).clamp(-FARTHEST, FARTHEST)
        return channels_with_gaps(scaled.float())


class Pixels(nn.Module):
    """Pixels as the network sees them."""

    def forward(self, x: Tensor) -> Tensor:
        """uint8 [b, H, W, C] -> float32 [b, C, H, W] in -1..1."""
        return to_float(x)


class Portable(nn.Module):
    """Raw inputs -> what the network says of them.

    Args:
        model: an exported one.

    Attributes:
        before: what makes the network's inputs of raw ones.
        network: in evaluation mode, with what its batch normalisation has seen of the client.
        names: of the outputs.
    """

    def __init__(self, model: Exported) -> None:
        super().__init__()
        recipe = model.recipe
        self.before: nn.Module = nn.Identity()
        if recipe["features"] == "image":
            self.before = Pixels()
        elif recipe["kind"] == "table":
            self.before = raw_rows.Scaled(recipe)
        elif recipe["kind"] == "series":
            self.before = Steps(recipe)
        self.network = model.network
        self._target = recipe["target"]
        self.names = ("values",) if self._target == "value" else ("logits", "probabilities")
        self.eval()

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Logits and probabilities [b, K] of classes or [b, k] of labels; or values [b, k]."""
        outputs = self.network(self.before(x))
        if self._target == "value":
            return (outputs,)
        return outputs, outputs.sigmoid() if self._target == "multi-label" else outputs.softmax(-1)


def samples(model: Exported, count: int = SAMPLES) -> Tensor:
    """Raw inputs to try a model with, as those of its data could be, the same ones at each call.

    Args:
        model: an exported one.
        count: how many.

    Raises:
        UserError: there is no such input of this kind of data.
    """
    recipe, shape = model.recipe, model.shape
    draw = torch.Generator().manual_seed(0)
    if recipe["features"] == "image":
        channels, height, width = shape
        return torch.randint(0, 256, (count, height, width, channels), generator=draw, dtype=torch.uint8)
    if recipe["kind"] == "table":
        return raw_rows.samples(recipe, count, draw)
    if recipe["features"] in ("text", "tokens"):
        most = shapes.vocabulary(shape) or len(recipe["outputs"])
        return torch.randint(0, most, (count, *shapes.dimensions(shape)), generator=draw)
    if recipe["kind"] == "series":
        return _steps(recipe, shape[1], count, draw)
    if recipe["features"] == "array":
        return torch.randn(count, *shape, generator=draw)
    raise UserError(f"{model.path} is for {recipe['kind']}, which has no raw inputs that another program could give")


def _steps(recipe: Mapping[str, Any], length: int, count: int, draw: torch.Generator) -> Tensor:
    """Numbers about those of the training, and a gap in every channel."""
    mean, std = (torch.tensor(recipe["scaling"][name], dtype=torch.float64) for name in ("mean", "std"))
    values = mean + 2 * std * torch.randn(count, length, len(mean), generator=draw, dtype=torch.float64)
    for channel in range(len(mean)):
        values[channel % count, channel % length, channel] = np.nan
    return values.float()
