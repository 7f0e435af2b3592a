"""FedAvg: one model for all, the weighted mean of what the clients trained.

Source: McMahan et al., "Communication-Efficient Learning of Deep Networks from Decentralized Data", AISTATS 2017,
Algorithm 1. Symbols: w the global model, w_k client k's model after local training, m_k its training samples,
S the cohort of the round, E local epochs.

Identity card
    shared      every layer group
    personal    nothing; the personal model is the global one after local fine-tuning (FedAvg-FT)
    lives       w on the server
    down, up    P scalars each for every client of the cohort and round
    cost        server: |S| P multiply-adds; client: E epochs
    server sees its whole model after each training
    peers see   the mean of the models
    bound       p C

The round
    R1  server: choose S, send w to each of its clients                         strategies/fedavg.py
    R2  client: w_k <- E epochs of SGD on L_k from w                            clients/fedavg.py
    R3  client: send w_k and m_k                                                clients/fedavg.py
    R4  server: w <- sum_{k in S} m_k w_k / sum_{k in S} m_k                    `aggregate`

Deviation from the paper: batch normalisation statistics are averaged like parameters; integer counters stay local.

R4 is what the settings under `server.` replace, here and in all methods that take a mean: by a median, a trimmed mean
or Krum (core/aggregation.py), or by a step of the server towards it, as in FedAvgM and FedAdam
(core/server_optimizers.py).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from fedham_flwr.core.methods import Method, Split, split_groups
from fedham_flwr.core.parameters import Manifest, Params
from fedham_flwr.core.trees import weighted_mean


def aggregate(models: Sequence[Mapping[str, Tensor]], samples: Sequence[int]) -> Params:
    """R4: the mean of the clients' models, weighted by their training samples.

    Args:
        models: w_k of each client of the cohort, in a fixed order of clients.
        samples: m_k >= 1, in the same order.
    """
    return weighted_mean(models, samples)


def split(manifest: Manifest, _settings: object) -> Split:
    """Every layer group is shared."""
    return split_groups(manifest, ())


METHOD = Method(
    "strategies.fedavg:FedAvgStrategy",
    "clients.fedavg:FedAvgClient",
    split,
    personal_model="after",
    averages=True,
    floor=True,
    composes=True,
)
