"""A few of many: those that are nearest, and some that are drawn. Shape letters: N things, R of them to choose from."""

from __future__ import annotations

import torch
from torch import Tensor


def nearest_and_drawn(nearness: Tensor, others: Tensor, count: int, drawn: float, generator: torch.Generator) -> Tensor:
    """Which few are chosen: the nearest, and a share that is drawn from the rest.

    Args:
        nearness: [N]; of equal ones those are taken that come first in an order that is drawn.
        others: int64 [R], those to choose from, in order.
        count: how many are wanted; all if there are no more.
        drawn: share of the count that is drawn, in [0, 1].
        generator: draws.

    Returns:
        int64 [min(R, count)], in order.
    """
    if len(others) <= count:
        return others
    order = others[torch.randperm(len(others), generator=generator)]
    best = nearness[order].argsort(descending=True, stable=True)[: count - round(drawn * count)]
    left = torch.ones(len(order), dtype=torch.bool)
    left[best] = False
    return torch.cat([order[best], order[left][: count - len(best)]]).sort().values
