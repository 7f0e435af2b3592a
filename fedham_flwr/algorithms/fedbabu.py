"""FedBABU: rounds train a common body under a head that never changes; after them each client fine-tunes all of it.

Source: Oh, Kim, Yun, "FedBABU: Toward Enhanced Representation for Federated Image Classification", ICLR 2022,
arXiv:2106.06042, Algorithm 1. Symbols: theta_ext the body, theta_cls the head, the last layers, theta_cls^0 its first
tensors, m_k training samples of client k, S the cohort of the round, E local epochs, tau_f fine-tuning epochs.

Identity card
    shared      every layer group but the last `head-layers`, theta_ext
    personal    nothing while the rounds last, since theta_cls^0 is everybody's; then the whole fine-tuned model
    lives       theta_ext on the server, theta_cls^0 with everyone, by the seed; the personal model with the client
    down, up    the scalars of theta_ext, each way, for every client of the cohort and round; once more down at the end
    cost        server: |S| |theta_ext| multiply-adds; client: E epochs a round without the head's gradient, and tau_f
                epochs once
    server sees its body after each training; of fine-tuning scores only
    peers see   the mean of the bodies
    bound       p C

The round
    R1  server: choose S, send theta_ext to each of its clients                 strategies/fedbabu.py
    R2  client: theta_ext,k <- E epochs of SGD on L_k at (theta_ext, theta_cls^0), the head frozen   clients/fedbabu.py
    R3  client: send theta_ext,k and m_k                                        clients/fedbabu.py
    R4  server: theta_ext <- sum_{k in S} m_k theta_ext,k / sum_{k in S} m_k     `fedavg.aggregate`
    R5  server: after the last round, send theta_ext to every client            strategies/fedbabu.py
    R6  client: tau_f epochs of SGD on L_k from (theta_ext, theta_cls^0), of all layers; keep that   clients/fedbabu.py

The head has no gradient before R6, so that neither momentum nor weight decay moves it, and running statistics in it
rest. Features learn to fit what the head happens to be at first; a head of zeros would let no gradient through, and is
refused. Fine-tuning from another run's body is possible, of as many layers and the same seed: another seed has another
head. The paper fine-tunes for 1 to 20 epochs; 10 is PFLlib's default, and Flower's baseline takes 5. Deviations: the
mean is weighted by samples, and fine-tuning comes once, after the last round.
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
class FedBABUSettings:
    """Settings under `fedbabu.`.

    Attributes:
        head_layers: how many of the last layer groups are the head, at least 1.
        fine_tune_epochs: tau_f; 0 leaves every client with the common body and the first head.
    """

    head_layers: Annotated[int, Ge(1)] = 1
    fine_tune_epochs: Annotated[int, Ge(0)] = 10


def split(manifest: Manifest, settings: FedBABUSettings) -> Split:
    """The head is never sent: everyone has its first tensors.

    Args:
        manifest: the model's.
        settings: how many layer groups the head has.

    Raises:
        UserError: no layer group would be left to share.
    """
    groups, count = manifest.group_names, settings.head_layers
    if count >= len(groups):
        raise UserError(
            f"fedbabu.head-layers={count} leaves no body of the model's {len(groups)} layer groups: {', '.join(groups)}"
        )
    return split_groups(manifest, groups[-count:])


METHOD = Method(
    "strategies.fedbabu:FedBABUStrategy",
    "clients.fedbabu:FedBABUClient",
    split,
    FedBABUSettings,
    averages=True,
    personal_stage=True,
    frozen_head=True,
    search={
        "fedbabu.fine-tune-epochs": Range(1, 20, start=10, log=True, whole=True, source="PFLlib"),
        "fedbabu.head-layers": Range(1, 2, start=1, whole=True, source="the paper"),
    },
)
