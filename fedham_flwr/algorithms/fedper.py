"""FedPer: a common base, and a head for every client that never leaves it.

Source: Arivazhagan et al., "Federated Learning with Personalization Layers", 2019, arXiv:1912.00818, Algorithms 1
and 2. Symbols: W_B the base layers, W_P,k the personalisation layers of client k, K_P their number, m_k its training
samples, E local epochs.

Identity card
    shared      every layer group but the last K_P
    personal    the last K_P layer groups, W_P,k; the personal model is (W_B, W_P,k)
    lives       W_B on the server, W_P,k with the client
    down, up    the scalars of W_B, each way, for every client of the cohort and round
    cost        server: |S| |W_B| multiply-adds; client: E epochs
    server sees its model without the personal layers
    peers see   the mean of the shared layers
    bound       p C; what a client keeps does not move

The round
    R1  server: choose S, send W_B to each of its clients                       strategies/fedper.py
    R2  client: (W_B,k, W_P,k) <- E epochs of SGD on L_k from (W_B, W_P,k)       clients/fedper.py
    R3  client: keep W_P,k, send W_B,k and m_k                                  clients/fedper.py
    R4  server: W_B <- sum_{k in S} m_k W_B,k / sum_{k in S} m_k                `fedavg.aggregate`

K_P = 0 is FedAvg; all groups personal is local training. Every W_P,k starts from the same initialisation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from annotated_types import Ge

from fedham_flwr.core.errors import UserError
from fedham_flwr.core.methods import Method, Split, split_groups
from fedham_flwr.core.parameters import Manifest
from fedham_flwr.core.search_space import Range


@dataclass(frozen=True)
class FedPerSettings:
    """Settings under `fedper.`.

    Attributes:
        personal_layers: K_P, how many of the last layer groups are personal; from 0 to their number.
    """

    personal_layers: Annotated[int, Ge(0)] = 1


def personal_groups(groups: Sequence[str], count: int) -> tuple[str, ...]:
    """Names of the last `count` layer groups.

    Args:
        groups: the model's layer groups, from the input to the output.
        count: K_P.

    Raises:
        UserError: the model has fewer groups than that.
    """
    if count > len(groups):
        raise UserError(
            f"fedper.personal-layers={count} is more than the model's {len(groups)} layer groups: {', '.join(groups)}"
        )
    return tuple(groups[len(groups) - count :])


def split(manifest: Manifest, settings: FedPerSettings) -> Split:
    """The last layer groups stay with the client; arguments as for `personal_groups`."""
    return split_groups(manifest, personal_groups(manifest.group_names, settings.personal_layers))


METHOD = Method(
    "strategies.fedper:FedPerStrategy",
    "clients.fedper:FedPerClient",
    split,
    FedPerSettings,
    averages=True,
    search={"fedper.personal-layers": Range(1, 2, start=1, whole=True)},
    composes=True,
)
