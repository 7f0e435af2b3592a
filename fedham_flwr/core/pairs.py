"""Numbers for pairs from factors: what n rows say of N columns, with no number kept for any pair.

Shape letters: n rows, N columns, L tables, r rank. The outputs of row i are a_il in R^r and one number b_il more, and
column j has the embedding p_jl in R^r:

    s_ilj = <a_il, p_jl> for every column j but the row's own, and s_ilj = b_il for that one

The own column stands apart since a diagonal has full rank: no small r could hold it.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int64
from torch import Tensor


def pair_scores(
    outputs: Float[Tensor, "n L r1"], columns: Float[Tensor, "N L r"], own: Int64[Tensor, " n"]
) -> Float[Tensor, "n L N"]:
    """s, of every row and column.

    Args:
        outputs: a, and b as the last: r1 = r + 1.
        columns: p.
        own: each row's own column.
    """
    scores = torch.bmm(outputs[..., :-1].transpose(0, 1), columns.permute(1, 2, 0)).transpose(0, 1)
    return scores.scatter(-1, _at(own, outputs), outputs[..., -1:])


def outputs_gradient(
    slope: Float[Tensor, "n L N"], columns: Float[Tensor, "N L r"], own: Int64[Tensor, " n"]
) -> Float[Tensor, "n L r1"]:
    """The gradient with respect to the outputs: sum_j slope_ilj p_jl without the own column, and that one's slope.

    Args:
        slope: the gradient with respect to s.
        columns: p.
        own: each row's own column.
    """
    at = _at(own, slope)
    others = slope.scatter(-1, at, 0.0).transpose(0, 1)  # [L, n, N]
    return torch.cat([torch.bmm(others, columns.transpose(0, 1)).transpose(0, 1), slope.gather(-1, at)], dim=-1)


def columns_gradient(
    slope: Float[Tensor, "n L N"], outputs: Float[Tensor, "n L r1"], own: Int64[Tensor, " n"]
) -> Float[Tensor, "N L r"]:
    """The gradient with respect to the columns, summed over the rows: sum_i slope_ilj a_il, each row without its own.

    Args:
        slope: the gradient with respect to s.
        outputs: a, and b as the last, which no column has a part in.
        own: each row's own column.
    """
    others = slope.scatter(-1, _at(own, slope), 0.0).permute(1, 2, 0)  # [L, N, n]
    return torch.bmm(others, outputs[..., :-1].transpose(0, 1)).transpose(0, 1)


def _at(own: Tensor, table: Tensor) -> Tensor:
    """Where each row's own column is, for `gather` and `scatter`: [n, L, 1]."""
    return own[:, None, None].expand(-1, table.shape[1], 1)
