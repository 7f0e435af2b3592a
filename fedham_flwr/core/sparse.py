"""Mixing weights as the left factor of matrix products: a sparse matrix if most of them are 0.

Shape letters: m mixtures, N models, p scalars of a piece of each; n clients, L layers.
"""

from __future__ import annotations

import warnings

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

SPARSE = 5
"""Weights with at most one in so many that is not zero are multiplied as sparse matrices."""


class Factor:
    """Mixing weights [m, N], as a sparse matrix if most of them are 0.

    Args:
        weights: [m, N], dense.
    """

    def __init__(self, weights: Tensor) -> None:
        self._sparse = weights.numel() > 0 and bool(weights.count_nonzero() * SPARSE <= weights.numel())
        with _unfinished():
            self._weights = weights.to_sparse_csr() if self._sparse else weights

    def times(self, models: Tensor) -> Tensor:
        """The mixtures [m, p] of pieces of models [N, p]."""
        if self._sparse:
            product: Tensor = torch.sparse.mm(self._weights, models.contiguous())
            return product
        return self._weights @ models

    def scores(self, models: Tensor, after: Tensor) -> Tensor:
        """<mixture_i - after_i, w_j> for pieces of models [N, p] and of uploads [m, p], where weight_ij is not 0."""
        change = self.times(models).sub_(after)
        if not self._sparse:
            return change @ models.T
        products: Tensor = torch.sparse.sampled_addmm(self._weights, change, models.contiguous().T, beta=0.0)
        return products.values()

    def empty_scores(self) -> Tensor:
        """Zeros to add scores to, float64."""
        values = self._weights.values() if self._sparse else self._weights
        return torch.zeros_like(values, dtype=torch.float64)

    def dense(self, scores: Tensor) -> Tensor:
        """Sums of scores as [m, N]."""
        if not self._sparse:
            return scores
        w = self._weights
        with _unfinished():
            return torch.sparse_csr_tensor(w.crow_indices(), w.col_indices(), scores, w.shape).to_dense()


def largest(alpha: Float[Tensor, "n L N"], k: int, order: Int64[Tensor, "n N"]) -> Bool[Tensor, "n L N"]:
    """Which k weights of each client and layer are largest; of equal ones those that come first in the order.

    Args:
        alpha: weights.
        k: how many, 1 to N.
        order: peers by number, for each client.
    """
    order = order[:, None].expand_as(alpha)
    best = alpha.gather(-1, order).argsort(dim=-1, descending=True, stable=True)[..., :k]
    chosen = torch.zeros_like(alpha, dtype=torch.bool)
    return chosen.scatter_(-1, order.gather(-1, best), True)


def _unfinished() -> warnings.catch_warnings[None]:
    """Torch warns that its sparse matrices are."""
    return warnings.catch_warnings(action="ignore", category=UserWarning)
