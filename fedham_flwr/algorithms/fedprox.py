"""FedProx: FedAvg whose clients are held near the global model by a proximal term.

Source: Li et al., "Federated Optimization in Heterogeneous Networks", MLSys 2020, Algorithm 2 and equation 2.
Symbols: w the global model, w_k client k's model, mu the weight of the proximal term.

Identity card
    shared      every layer group
    personal    nothing; the personal model is the global one after local fine-tuning
    lives       w on the server
    down, up    P scalars each for every client of the cohort and round
    cost        FedAvg's, and 2 P operations more in each local step
    server sees its whole model after each training
    peers see   the mean of the models
    bound       p C

The round
    R1  server: choose S, send w to each of its clients                         strategies/fedprox.py (FedAvg's)
    R2  client: w_k <- E epochs of SGD on L_k(w_k) + (mu/2) |w_k - w|^2          clients/fedprox.py, `Proximal`
    R3  client: send w_k and m_k                                                clients/fedprox.py
    R4  server: w <- sum_{k in S} m_k w_k / sum_{k in S} m_k                    `fedavg.aggregate`

Deviation from the paper: S is drawn uniformly and weighted by m_k, as in FedAvg, so that mu = 0 is FedAvg bit for
bit; every client runs the same E epochs instead of reaching a gamma-inexact solution.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated

from annotated_types import Ge
from torch import Tensor

from fedham_flwr.algorithms.fedavg import split
from fedham_flwr.core.methods import Method
from fedham_flwr.core.search_space import Range
from fedham_flwr.core.trees import stack


@dataclass(frozen=True)
class FedProxSettings:
    """Settings under `fedprox.`.

    Attributes:
        mu: weight of the proximal term, >= 0; 0 is FedAvg. The paper tries 0.001, 0.01, 0.1 and 1.
    """

    mu: Annotated[float, Ge(0)] = 0.01


def add_proximal_(param: Tensor, gradient: Tensor, anchor: Tensor, mu: float) -> None:
    """R2: add mu (w_k - w), the gradient of (mu/2) |w_k - w|^2, to a parameter's gradient in place.

    Args:
        param: a tensor of w_k.
        gradient: its gradient, changed.
        anchor: the same tensor of w.
        mu: weight of the term.
    """
    gradient.add_(param - anchor, alpha=mu)


class Proximal:
    """R2 as a term of the gradient; of several clients at once where the anchor is stacked.

    Args:
        anchor: w, by name: each tensor as the parameter, or [n, ...] of n clients. Nothing pulls at what is not there.
        mu: weight of the term.
    """

    def __init__(self, anchor: Mapping[str, Tensor], mu: float) -> None:
        self._anchor, self._mu = anchor, mu

    def __call__(self, name: str, param: Tensor, gradient: Tensor) -> None:
        """Change a gradient in place: of one client, or of the first clients of a stack."""
        if (anchor := self._anchor.get(name)) is None:
            return
        add_proximal_(param, gradient, anchor if anchor.shape == param.shape else anchor[: len(param)], self._mu)

    def stacked(self, terms: Sequence[Proximal]) -> Proximal:
        """One term for several clients, of which this is the first; each has the same weight."""
        return Proximal(stack([term._anchor for term in terms]), self._mu)


METHOD = Method(
    "strategies.fedprox:FedProxStrategy",
    "clients.fedprox:FedProxClient",
    split,
    FedProxSettings,
    personal_model="after",
    averages=True,
    search={"fedprox.mu": Range(0.001, 1.0, start=0.01, log=True, source="one of those that the paper tries")},
    composes=True,
)
