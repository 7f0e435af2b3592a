"""Optimisers of many small models at once, stacked: none depends on who else is there."""

from __future__ import annotations

import torch
from torch import Tensor

from fedham_flwr.core.parameters import Params

DECAY = (0.9, 0.999)
"""Of Adam's moments."""
SMALL = 1e-18
"""Far below any gradient, so that steps do not depend on the loss's scale."""


def directions(slopes: Params, optimizer: str, moments: Params) -> tuple[Params, Params]:
    """What the learning rate is multiplied with, and the new moments.

    Args:
        slopes: the gradient, each [n, L, ...].
        optimizer: adam, normalised or sgd.
        moments: of the same clients, `first/...` and `second/...`, as slopes, and steps [n]; with adam.
    """
    if optimizer == "sgd":
        return slopes, {}
    if optimizer == "normalised":
        squares = torch.stack([slope.flatten(2).square().sum(-1) for slope in map(_three, slopes.values())])
        length = squares.sum(0).sqrt()  # [n, L]
        return {name: slope / like(length.clamp_min(SMALL), slope) for name, slope in slopes.items()}, {}
    steps, new = {}, {"steps": moments["steps"] + 1}
    for name, slope in slopes.items():
        for which, power, decay in zip(("first", "second"), (1, 2), DECAY, strict=True):
            new[f"{which}/{name}"] = decay * moments[f"{which}/{name}"].to(slope) + (1 - decay) * slope**power
        first, second = (
            new[f"{which}/{name}"] / like(1 - decay ** new["steps"], slope)
            for which, decay in zip(("first", "second"), DECAY, strict=True)
        )
        steps[name] = first / (second.sqrt() + SMALL)
    return steps, new


def _three(tensor: Tensor) -> Tensor:
    return tensor[..., None] if tensor.dim() == 2 else tensor


def like(given: Tensor, tensor: Tensor) -> Tensor:
    """With axes of length one at the end, to go with a tensor of more axes."""
    return given.view(*given.shape, *[1] * (tensor.dim() - given.dim()))
