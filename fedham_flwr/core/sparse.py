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
        self._weights, self._models = weights, weights.shape[1]
        if self._sparse:
            # Only models that have a part in some mixture are looked at: a few hundred of ten thousand.
            used = weights.count_nonzero(0)
            used[0] += not used.any()
            self._used = used.nonzero().flatten()
            with _unfinished():
                self._weights = weights[:, self._used].to_sparse_csr()

    def times(self, models: Tensor) -> Tensor:
        """The mixtures [m, p] of pieces of models [N, p]."""
        if self._sparse:
            product: Tensor = torch.sparse.mm(self._weights, models.index_select(0, self._used))
            return product
        return self._weights @ models

    def scores(self, models: Tensor, after: Tensor) -> Tensor:
        """<mixture_i - after_i, w_j> for pieces of models [N, p] and of uploads [m, p], where weight_ij is not 0."""
        if not self._sparse:
            return (self._weights @ models).sub_(after) @ models.T
        used = models.index_select(0, self._used)
        return self._sampled(torch.sparse.mm(self._weights, used).sub_(after), used)

    def products(self, change: Tensor, models: Tensor) -> Tensor:
        """<change_i, w_j> for pieces of changes [m, p] and of models [N, p], where weight_ij is not 0."""
        return self._sampled(change, models.index_select(0, self._used)) if self._sparse else change @ models.T

    def _sampled(self, change: Tensor, used: Tensor) -> Tensor:
        found: Tensor = torch.sparse.sampled_addmm(self._weights, change, used.T, beta=0.0)
        return found.values()

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
            found = torch.sparse_csr_tensor(w.crow_indices(), w.col_indices(), scores, w.shape).to_dense()
        return found.new_zeros(len(found), self._models).index_copy_(1, self._used, found)


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
