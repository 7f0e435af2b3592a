"""Stacked perceptrons: n networks of the same shape with weights of their own, computed at once.

Shape letters: n networks, d input, h hidden width, L heads of each, K outputs of a head.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn.functional import relu


def uniform(shape: tuple[int, ...], fan_in: int, generator: torch.Generator) -> Tensor:
    """First values of a layer as torch's `Linear` has them: uniform in [-1 / sqrt(fan_in), 1 / sqrt(fan_in)]."""
    drawn: Tensor = torch.rand(shape, generator=generator) * 2 - 1
    return drawn.div_(math.sqrt(fan_in))


def outputs(params: Mapping[str, Tensor]) -> Tensor:
    """What the heads of n networks give, each for its own trainable input: [n, L, K].

    Args:
        params: embedding [n, d], the inputs; hidden.k.weight [n, h, d or h] and hidden.k.bias [n, h], each layer with a
            ReLU; heads.weight [n, L, K, h] and heads.bias [n, L, K].
    """
    hidden = params["embedding"].unsqueeze(2)  # [n, d, 1]
    for k in range(sum(name.startswith("hidden.") for name in params) // 2):
        bias = params[f"hidden.{k}.bias"].unsqueeze(2)
        hidden = relu(torch.baddbmm(bias, params[f"hidden.{k}.weight"], hidden))  # [n, h, 1]
    heads, bias = params["heads.weight"], params["heads.bias"]
    given: Tensor = torch.bmm(heads.flatten(1, 2), hidden)  # [n, L K, 1]
    return bias + given.view(bias.shape)
