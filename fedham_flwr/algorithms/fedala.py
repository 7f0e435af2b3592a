"""FedALA: each client learns, scalar by scalar, how much of the global model's last layers to start from.

Source: Zhang, Hua, Wang, Song, Xue, Ma, Guan, "FedALA: Adaptive Local Aggregation for Personalized Federated Learning",
AAAI 2023, arXiv:2212.01197, equations 3 to 5, Algorithm 1. Symbols: w the global model, w_k client k's model, W_k its
aggregation weights in [0, 1], p the layers they are for, s the share of its training samples they are learned with.

Identity card
    shared      every layer group; the personal model is the one after the adaptive aggregation and local training
    personal    w_k, of which a copy goes to the server, and W_k
    lives       w on the server, w_k and W_k with the client
    down, up    P scalars each for every client of the cohort and round
    cost        FedAvg's, and at most `most-passes` passes over s of the data, of the last p layers' weights
    server sees its whole model after each training; never its aggregation weights
    peers see   the mean of the models
    bound       p C for the global model; for what the other starts from, p C and as much as the global model and the
                other's own are apart in the last `fedala.layers` layer groups: it starts between the two, and how far
                between depends on the global model

The round
    R1  server: choose S, send w to each of its clients                         strategies/fedala.py
    R2  client: start from u = w below; u = w_k + (w - w_k) W_k in the last p layers (4)   `aggregate_locally`
    R3  client: W_k <- clip(W_k - eta dL_k(u)/du (w - w_k), 0, 1) (5), batch by batch        `weight_step`
    R4  client: w_k <- E epochs of SGD on L_k from u; keep w_k and W_k, send w_k and m_k     clients/fedala.py
    R5  server: w <- sum_{k in S} m_k w_k / sum_{k in S} m_k                    `fedavg.aggregate`

W_k = 1 is FedAvg's start, W_k = 0 local training's. W_k starts at 1; in the client's second round it is learned until
its loss no longer falls by more than `tolerance`, at most `most-passes` passes, later for one pass. In the first round
w_k and w are equal and nothing is learned.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from annotated_types import Ge, Gt, Le
from torch import Tensor

from fedham_flwr.algorithms.fedavg import split
from fedham_flwr.core.methods import Method
from fedham_flwr.core.search_space import Range


@dataclass(frozen=True)
class FedALASettings:
    """Settings under `fedala.`; the defaults are the authors'.

    Attributes:
        layers: p, how many of the last layer groups are aggregated adaptively; 0 for all.
        rate: eta, of the aggregation weights.
        share: s, of the training samples that these are learned with, (0, 1].
        most_passes: over those samples, in the client's second round.
        tolerance: standard deviation of the last losses below which learning stops.
    """

    layers: Annotated[int, Ge(0)] = 1
    rate: Annotated[float, Ge(0)] = 1.0
    share: Annotated[float, Gt(0), Le(1)] = 0.8
    most_passes: Annotated[int, Gt(0)] = 20
    tolerance: Annotated[float, Ge(0)] = 0.1


def aggregate_locally(own: Tensor, common: Tensor, weights: Tensor) -> Tensor:
    """R2, equation 4: w_k + (w - w_k) W_k, elementwise.

    Args:
        own: w_k.
        common: w.
        weights: W_k, in [0, 1].
    """
    return own + (common - own) * weights


def weight_step(weights: Tensor, gradient: Tensor, own: Tensor, common: Tensor, rate: float) -> Tensor:
    """R3, equation 5: the weights after a step along the gradient, clipped to [0, 1].

    Args:
        weights: W_k.
        gradient: dL_k/du at the aggregated model.
        own: w_k.
        common: w.
        rate: eta.
    """
    return (weights - rate * gradient * (common - own)).clamp(0, 1)


METHOD = Method(
    "strategies.fedala:FedALAStrategy",
    "clients.fedala:FedALAClient",
    split,
    FedALASettings,
    averages=True,
    search={
        "fedala.rate": Range(0.1, 10.0, start=1.0, log=True, source="the authors' code"),
        "fedala.layers": Range(1, 2, start=1, whole=True, source="the authors' code, which has 1 or 2"),
    },
)
