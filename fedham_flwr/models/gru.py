"""A gated recurrent network over time, in linear layers, so that it runs for many clients at once as any other.

Shape letters: b batch, c channels with their gaps, t time, h width, k classes.

Source: Cho et al., "Learning Phrase Representations using RNN Encoder-Decoder for Statistical Machine Translation",
EMNLP 2014, in the form that torch has: the reset gate multiplies the state's product with its weights, bias included.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from annotated_types import Gt
from jaxtyping import Float
from torch import Tensor, nn

from fedham_flwr.core.parameters import LayerGroup, module_group
from fedham_flwr.core.shapes import dimensions
from fedham_flwr.models.network import Network


@dataclass(frozen=True)
class GRUSettings:
    """Settings under `gru.`.

    Attributes:
        width: h, of a layer's state.
        depth: layers, each over the states of the one below.
    """

    width: Annotated[int, Gt(0)] = 64
    depth: Annotated[int, Gt(0)] = 1


class GRULayer(nn.Module):
    """A layer: r = sigma(W_r x + U_r s), z = sigma(W_z x + U_z s), n = tanh(W_n x + r U_n s), s <- (1 - z) n + z s.

    Its weights are those of `torch.nn.GRU`: `inputs` are `weight_ih` and `bias_ih`, `states` the others; in the order
    r, z, n.

    Args:
        channels: of the input.
        width: h.
    """

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.inputs = nn.Linear(channels, 3 * width)
        self.states = nn.Linear(width, 3 * width)
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -1 / math.sqrt(width), 1 / math.sqrt(width))

    def forward(self, x: Float[Tensor, "b t c"]) -> Float[Tensor, "b t h"]:
        """The state after each step; it starts at zero."""
        given: Tensor = self.inputs(x)
        state = given.new_zeros(x.shape[0], given.shape[2] // 3)
        states = []
        for step in given.unbind(1):
            reset_in, update_in, new_in = step.chunk(3, dim=1)
            reset_of, update_of, new_of = self.states(state).chunk(3, dim=1)
            update = torch.sigmoid(update_in + update_of)
            new = torch.tanh(new_in + torch.sigmoid(reset_in + reset_of) * new_of)
            state = new + update * (state - new)
            states.append(state)
        return torch.stack(states, dim=1)


class GRU(Network):
    """layer1, layer2, ..., then the last state beside the mean of all, and a linear head.

    14,340 parameters for 3 channels and 4 classes with the default settings, of any length.

    Args:
        shape: (2 C, T, 1, 0) of a series of C channels; or (channels, time) of arrays.
        outputs: of the head.
        settings: its own.
    """

    kinds: ClassVar[tuple[str, ...]] = ("series", "table")
    Settings: ClassVar[type | None] = GRUSettings

    def __init__(self, shape: tuple[int, ...], outputs: int, settings: GRUSettings = GRUSettings()) -> None:
        super().__init__()
        channels, _ = dimensions(shape)
        self._layers = tuple(f"layer{number + 1}" for number in range(settings.depth))
        for name in self._layers:
            self.add_module(name, GRULayer(channels, settings.width))
            channels = settings.width
        self.head = nn.Linear(2 * channels, outputs)

    def forward(self, x: Float[Tensor, "b c t"]) -> Float[Tensor, "b k"]:
        """Logits of a batch of series, as `batches.channels_with_gaps` makes them."""
        x = x.transpose(1, 2)
        for name in self._layers:
            x = self.get_submodule(name)(x)
        logits: Tensor = self.head(torch.cat([x[:, -1], x.mean(1)], dim=1))
        return logits

    def layer_groups(self) -> Sequence[LayerGroup]:
        """One group for each layer."""
        return tuple(module_group(self, name) for name in (*self._layers, "head"))
