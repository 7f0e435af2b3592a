"""How many multiply-adds a network does, and which of several kinds of batches it takes."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode


class Counting(TorchFunctionMode):
    """Counts the multiply-adds of linear layers and convolutions, which are nearly all there are."""

    products = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func in (functional.linear, functional.conv1d, functional.conv2d) and len(args) > 1:
            self.products += out.numel() * args[1][0].numel()
        return out


def taken(model: nn.Module, batches: Sequence[Tensor]) -> tuple[Tensor, int]:
    """The first of these batches that a network takes, and the multiply-adds of a sample's forward pass.

    If it takes none it is the first and 0: whatever a user's network raises, it is found when that is tried.
    """
    was = model.training
    model.eval()
    try:
        for inputs in batches:
            counting = Counting()
            with contextlib.suppress(Exception), torch.no_grad(), counting:
                model(inputs[:1])
                return inputs, counting.products
    finally:
        model.train(was)
    return batches[0], 0
