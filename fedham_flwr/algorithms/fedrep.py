"""FedRep: a common representation, and a head for every client that is trained before it.

Source: Collins, Hassani, Mokhtari, Shakkottai, "Exploiting Shared Representations for Personalized Federated Learning",
ICML 2021, arXiv:2102.07078, Algorithm 1. Symbols: phi the representation, h_k the head of client k, m_k its training
samples, tau_h and tau_b the epochs of head and representation.

Identity card
    shared      every layer group but the last ones, phi
    personal    the last `personal-layers` layer groups, h_k; the personal model is (phi, h_k)
    lives       phi on the server, h_k with the client
    down, up    the scalars of phi, each way, for every client of the cohort and round
    cost        server: |S| |phi| multiply-adds; client: tau_h epochs of the head and tau_b of the representation
    server sees its model without the head
    peers see   the mean of the shared layers
    bound       p C; what a client keeps does not move

The round
    R1  server: choose S, send phi to each of its clients                       strategies/fedrep.py
    R2  client: h_k <- tau_h epochs of SGD on L_k, phi frozen                    clients/fedrep.py
    R3  client: phi_k <- tau_b epochs of SGD on L_k, h_k frozen                  clients/fedrep.py
    R4  client: keep h_k, send phi_k and m_k                                    clients/fedrep.py
    R5  server: phi <- sum_{k in S} m_k phi_k / sum_{k in S} m_k                 `fedavg.aggregate`

Deviation from the paper: the mean is weighted by samples, as in FedAvg. The authors' scripts take tau_h = 10 and
tau_b = 1 with SGD.
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
class FedRepSettings:
    """Settings under `fedrep.`.

    Attributes:
        personal_layers: how many of the last layer groups are the head, at least 1.
        head_epochs: tau_h; with 0 the head never changes.
    """

    personal_layers: Annotated[int, Ge(1)] = 1
    head_epochs: Annotated[int, Ge(0)] = 10


def split(manifest: Manifest, settings: FedRepSettings) -> Split:
    """The head stays with the client.

    Args:
        manifest: the model's.
        settings: how many layer groups the head has.

    Raises:
        UserError: no layer group would be left to share.
    """
    groups = manifest.group_names
    if settings.personal_layers >= len(groups):
        raise UserError(
            f"fedrep.personal-layers={settings.personal_layers} leaves nothing to share of the model's {len(groups)} "
            f"layer groups: {', '.join(groups)}"
        )
    return split_groups(manifest, groups[-settings.personal_layers :])


METHOD = Method(
    "strategies.fedrep:FedRepStrategy",
    "clients.fedrep:FedRepClient",
    split,
    FedRepSettings,
    averages=True,
    search={
        "fedrep.head-epochs": Range(1, 20, start=10, log=True, whole=True, source="the authors' scripts"),
        "fedrep.personal-layers": Range(1, 2, start=1, whole=True),
    },
)
