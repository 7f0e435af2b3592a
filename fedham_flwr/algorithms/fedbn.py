"""FedBN: FedAvg of everything but normalisation layers, of which each client has its own.

Source: Li, Jiang, Zhang, Kamp, Dou, "FedBN: Federated Learning on Non-IID Features via Local Batch Normalization", ICLR
2021, arXiv:2102.07623, Algorithm 1 (appendix). Symbols: w everything but normalisation, b_k the normalisation layers of
client k, m_k its training samples, S the cohort of the round, E local epochs.

Identity card
    shared      everything but normalisation layers, w
    personal    scale, shift and running statistics of every normalisation layer, b_k; the personal model is (w, b_k)
    lives       w on the server, b_k with the client
    down, up    the scalars of w, each way, for every client of the cohort and round
    cost        server: |S| |w| multiply-adds; client: E epochs
    server sees its model without normalisation layers, so neither means nor variances of what its layers see
    peers see   the mean of the rest
    bound       p C; what a client keeps does not move

The round
    R1  server: choose S, send w to each of its clients                         strategies/fedbn.py
    R2  client: (w_k, b_k) <- E epochs of SGD on L_k from (w, b_k)               clients/fedbn.py
    R3  client: keep b_k, send w_k and m_k                                      clients/fedbn.py
    R4  server: w <- sum_{k in S} m_k w_k / sum_{k in S} m_k                     `fedavg.aggregate`

On a network without such layers it is FedAvg, bit for bit, and a run says so. Running statistics are a part of b_k as
in the paper; to average them and to keep scale and shift alone, as some published code does, is another method. The
paper keeps batch normalisation, and so does `layers="batch"`; `"all"` keeps layers that have no running statistics too.
Which layers these are both halves find in the manifest, see `normalisation`. Deviations: the mean is weighted by
samples; the paper's clients are few, have as many samples each, and all train in each round.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from fedham_flwr.core.methods import Method, Split, split_tensors
from fedham_flwr.core.normalisation import normalisation
from fedham_flwr.core.parameters import Manifest
from fedham_flwr.core.search_space import Choice


@dataclass(frozen=True)
class FedBNSettings:
    """Settings under `fedbn.`.

    Attributes:
        layers: which normalisation layers stay with the client: batch (those with running statistics), or all.
    """

    layers: Literal["batch", "all"] = "batch"


def split(manifest: Manifest, settings: FedBNSettings) -> Split:
    """Normalisation layers stay with the client; arguments as for `normalisation`."""
    return split_tensors(manifest, normalisation(manifest, settings.layers))


METHOD = Method(
    "strategies.fedbn:FedBNStrategy",
    "clients.fedbn:FedBNClient",
    split,
    FedBNSettings,
    averages=True,
    search={"fedbn.layers": Choice(("batch", "all"), start="batch", source="the paper")},
    composes=True,
)
