"""Ditto: FedAvg, and beside it a private model of each client that is held near the global one.

Source: Li, Hu, Beirami, Smith, "Ditto: Fair and Robust Federated Learning Through Personalization", ICML 2021,
arXiv:2012.04221, Algorithm 1. Symbols: w the global model, w_k client k's copy after training, v_k its private model,
m_k its training samples, lambda the weight of the proximal term.

Identity card
    shared      every layer group, of w
    personal    v_k, a whole model; running statistics of v_k too
    lives       w on the server, v_k with the client
    down, up    P scalars each for every client of the cohort and round
    cost        FedAvg's, and as much again on the client for v_k
    server sees its copy of the global model after training; never its private model
    peers see   the mean of the copies
    bound       p C for the global model; the private model starts where it was, and is then pulled towards a global
                model that has moved by at most p C

The round
    R1  server: choose S, send w to each of its clients                         strategies/ditto.py
    R2  client: w_k <- E epochs of SGD on L_k from w                            clients/ditto.py
    R3  client: v_k <- E epochs of SGD on L_k(v_k) + (lambda/2) |v_k - w|^2      clients/ditto.py
    R4  client: keep v_k, send w_k and m_k                                      clients/ditto.py
    R5  server: w <- sum_{k in S} m_k w_k / sum_{k in S} m_k                    `fedavg.aggregate`

lambda = 0 is local training of v_k. A client's v_k starts at the common first model, as every method's. Both trainings
of a round see the samples in orders of their own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from annotated_types import Ge

from fedham_flwr.algorithms.fedavg import split
from fedham_flwr.core.methods import Method
from fedham_flwr.core.search_space import Range


@dataclass(frozen=True)
class DittoSettings:
    """Settings under `ditto.`.

    Attributes:
        penalty: lambda, >= 0; the paper tries 0.05, 0.1, 1 and 2; 0 is local training.
    """

    penalty: Annotated[float, Ge(0)] = 1.0


METHOD = Method(
    "strategies.ditto:DittoStrategy",
    "clients.ditto:DittoClient",
    split,
    DittoSettings,
    averages=True,
    search={"ditto.penalty": Range(0.05, 2.0, start=1.0, log=True, source="one of those that the paper tries")},
)
