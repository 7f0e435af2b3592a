"""Random projections of long vectors onto few sums."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

ROWS = 512
"""So many rows of d scalars are folded at once by `project`: a piece stays in the processor's cache."""


def project(models: Float[Tensor, "N P"], signs: Float[Tensor, " P"], d: int) -> Float[Tensor, "N d"]:
    """R w for each row w. Row p mod d of column p of R holds the sign of p, so that E <R x, R y> = <x, y>; float64."""
    total = models.new_zeros(len(models), d, dtype=torch.float64)
    for at in range(0, models.shape[1], ROWS * d):
        piece = models[:, at : at + ROWS * d] * signs[at : at + ROWS * d]
        whole = piece.shape[1] // d * d
        total += piece[:, :whole].reshape(len(models), -1, d).sum(1)
        total[:, : piece.shape[1] - whole] += piece[:, whole:]
    return total
