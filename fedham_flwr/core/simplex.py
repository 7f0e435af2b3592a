"""Quadratic programmes over the probability simplex, many of the same curvature at once."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

MOST_STEPS = 5000
"""Of projected gradient; well-conditioned programmes take some dozens."""


def project(points: Float[Tensor, "n m"]) -> Float[Tensor, "n m"]:
    """The nearest points of the simplex, row by row: each entry less a common number, where that is above 0.

    Args:
        points: finite.
    """
    falling = points.sort(dim=-1, descending=True).values
    places = torch.arange(1, points.shape[-1] + 1, dtype=points.dtype, device=points.device)
    shifts = (falling.cumsum(-1) - 1) / places
    last = (falling > shifts).sum(-1, keepdim=True) - 1  # the largest set whose entries all stay above 0
    return (points - shifts.gather(-1, last)).clamp(min=0)


def minimise(
    curvature: Float[Tensor, "m m"],
    linear: Float[Tensor, "n m"],
    first: Float[Tensor, "n m"],
    tolerance: float = 1e-10,
) -> Float[Tensor, "n m"]:
    """For each row g of `linear` the point a of the simplex where a^T H a - 2 <g, a> is smallest.

    By accelerated projected gradient that starts its momentum anew where it points uphill. It ends when every point
    is proven to be as good as the best one but for `tolerance`, relative to the largest entry of H: <slope, a> - min
    slope is how much could be gained at most, since the function is convex.

    Args:
        curvature: H, symmetric and positive semi-definite, float64.
        linear: float64.
        first: points of the simplex to start from, float64; they decide where several are best.
        tolerance: > 0.

    Returns:
        Points of the simplex.
    """
    most = float(torch.linalg.eigvalsh(curvature)[-1])
    if most <= 0:  # H is 0 but for rounding, and so is all that a mixture could gain
        return first
    scale = float(curvature.diagonal().max())
    points, ahead, pace = first, first, torch.ones(len(first), 1, dtype=first.dtype)
    for _ in range(MOST_STEPS):
        moved = project(ahead - (ahead @ curvature - linear) / most)
        uphill = ((ahead - moved) * (moved - points)).sum(-1, keepdim=True) > 0
        faster = torch.where(uphill, 1.0, (1 + (1 + 4 * pace.square()).sqrt()) / 2)
        push = torch.where(uphill, 0.0, (pace - 1) / faster)
        points, ahead, pace = moved, moved + push * (moved - points), faster
        slopes = points @ curvature - linear
        gain = (slopes * points).sum(-1) - slopes.min(-1).values
        if float(gain.max()) <= tolerance * scale:
            break
    return points
