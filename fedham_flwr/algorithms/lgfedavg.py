"""LG-FedAvg: every client has lower layers of its own, and the last ones are common: FedPer's mirror image.

Source: Liang, Liu, Ziyin, Allen, Auerbach, Brent, Salakhutdinov, Morency, "Think Locally, Act Globally: Federated
Learning with Local and Global Representations", 2020, arXiv:2001.01523, Algorithm 1. Symbols: theta_k the local
representation of client k, the lower layers, theta_g the global model on top of it, m_k training samples, S the cohort
of the round, E local epochs.

Identity card
    shared      the last `shared-layers` layer groups, theta_g
    personal    every layer group before them, theta_k; the personal model is (theta_k, theta_g)
    lives       theta_g on the server, theta_k with the client
    down, up    the scalars of theta_g, each way, for every client of the cohort and round
    cost        server: |S| |theta_g| multiply-adds; client: E epochs
    server sees its last layers after each training, and nothing that looks at inputs
    peers see   the mean of the last layers
    bound       p C; what a client keeps does not move

The round
    R1  server: choose S, send theta_g to each of its clients                   strategies/lgfedavg.py
    R2  client: (theta_k, theta_g,k) <- E epochs of SGD on L_k from (theta_k, theta_g)   clients/lgfedavg.py
    R3  client: keep theta_k, send theta_g,k and m_k                            clients/lgfedavg.py
    R4  server: theta_g <- sum_{k in S} m_k theta_g,k / sum_{k in S} m_k         `fedavg.aggregate`

With all layer groups shared it is FedAvg, with none it is local training. Running statistics of lower layers stay with
the client too. Deviations: the authors' experiments begin with a model that FedAvg has trained, for 1200 rounds before
200 of these on CIFAR-10; here all clients begin with the same first tensors, as in their Algorithm 1. In their code the
two layers that are averaged on CIFAR-10 are the convolutions, since its list of layers ends with them: that is FedPer
with three personal layers. Auxiliary losses of the local representation, which the paper allows, are not here; nor is
its vote of all local models for a client whose data are unknown.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from annotated_types import Ge

from fedham_flwr.core.errors import UserError
from fedham_flwr.core.methods import Method, Split, split_groups
from fedham_flwr.core.parameters import Manifest
from fedham_flwr.core.search_space import Range


@dataclass(frozen=True)
class LGFedAvgSettings:
    """Settings under `lgfedavg.`.

    Attributes:
        shared_layers: how many of the last layer groups are averaged; 0 is local training, all of them FedAvg.
    """

    shared_layers: Annotated[int, Ge(0)] = 2


def split(manifest: Manifest, settings: LGFedAvgSettings) -> Split:
    """All layer groups but the last ones stay with the client.

    Args:
        manifest: the model's.
        settings: how many are shared.

    Raises:
        UserError: the model has fewer layer groups than that.
    """
    groups, count = manifest.group_names, settings.shared_layers
    if count > len(groups):
        raise UserError(
            f"lgfedavg.shared-layers={count} is more than the model's {len(groups)} layer groups: {', '.join(groups)}"
        )
    return split_groups(manifest, groups[: len(groups) - count])


METHOD = Method(
    "strategies.lgfedavg:LGFedAvgStrategy",
    "clients.lgfedavg:LGFedAvgClient",
    split,
    LGFedAvgSettings,
    averages=True,
    search={"lgfedavg.shared-layers": Range(1, 3, start=2, whole=True, source="the authors' scripts")},
)
