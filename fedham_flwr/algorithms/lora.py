"""LoRA: adapters of low rank on a fixed network, of which each variant shares other parts: FedSA, FFA, averaged, local.

Source: Guo, Zeng, Wang, Fan, Wang, Qu, "Selective Aggregation for Low-Rank Adaptation in Federated Learning", ICLR
2025, arXiv:2410.01463, Algorithm 1 (fedsa), and Sun, Li, Li, Ding, "Improving LoRA in Privacy-Preserving Federated
Learning", ICLR 2024, arXiv:2403.12313 (ffa), on Hu et al., "LoRA", ICLR 2022. Symbols: W_0 the weight [o, i] of a layer
that is adapted, never trained and never sent, A_k [r, i] and B_k [o, r] of client k, r the rank, alpha / r the factor
of their product, h_k the classifier, m_k training samples, S the cohort, E local epochs.

Identity card
    shared      fedsa: A; ffa: B and h; averaged: A, B and h; local: nothing
    personal    fedsa: B_k and h_k; ffa, averaged: nothing; local: A_k, B_k and h_k; W_0 is everybody's, in no message
    lives       what is shared on the server, what is personal with the client, W_0 with everyone: by the seed or a file
    down, up    scalars of each adapted layer: r i (fedsa), r o (ffa), r (i + o) (averaged), 0 (local); for ffa and
                averaged those of h too; each way, for every client of the cohort and round
    cost        server: |S| times the scalars that are sent; client: E epochs without gradients of W_0
    server sees what is shared, after each training; W_0, which it has itself, is never sent
    peers see   the mean of what is shared
    bound       p C for each matrix that is shared; what is personal does not move, but is multiplied with it

The round
    R1  server: choose S, send what is shared, and a digest of W_0               strategies/lora.py
    R2  client: refuse to go on from another W_0                                clients/lora.py
    R3  client: E epochs of SGD on L_k at W_0 + (alpha / r) B_k A_k of all that is not fixed   clients/lora.py
    R4  client: keep what is personal, send what is shared and m_k              clients/lora.py
    R5  server: the mean over S of each tensor, weighted by m_k                 `fedavg.aggregate`

SHARES is the split, the only difference between the variants. B = 0 at first, so that every layer gives what it gave
without an adapter, bit for bit; a B that is 0 gives A no gradient in the first step. ffa is averaged with A fixed at
its first values, which are the same for all by the seed; fedsa with A fixed would be local training of B and h, and
is ffa for a single client alone. averaged (FedIT, Zhang et al., 2024) is inexact: the mean of B_k times the mean of
A_k is not the mean of B_k A_k; for ffa, with one A, it is. The rank and alpha are the run's: matrices of other ranks
have no mean, and a message with such is refused, as is a node config that sets them. Deviations: the mean is weighted
by samples; the papers do not say what becomes of the classifier in ffa and averaged, which is averaged here. The
authors of FedSA take r 8, alpha 16, dropout 0.05 and SGD at 0.02 with ten steps of 128 samples a round.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Lt

from fedham_flwr.core.errors import UserError
from fedham_flwr.core.methods import Method, NetworkNeeds, Split, split_tensors
from fedham_flwr.core.parameters import Manifest
from fedham_flwr.core.search_space import Choice, Range
from fedham_flwr.models.adapted_weights import A, B
from fedham_flwr.models.adapters import AdapterSettings

SHARES: Mapping[str, Mapping[str, str]] = {
    "fedsa": {"A": "shared", "B": "personal", "classifier": "personal"},
    "ffa": {"A": "fixed", "B": "shared", "classifier": "shared"},
    "averaged": {"A": "shared", "B": "shared", "classifier": "shared"},
    "local": {"A": "personal", "B": "personal", "classifier": "personal"},
}
"""What becomes of each part, by variant."""
DIGITS = 15
"""Hexadecimal digits of a digest in one whole number."""
BASE = "base"
"""The fact that is the digest of W_0."""
KEPT = "lora/base"
"""The server's tensor that is the same."""


@dataclass(frozen=True)
class LoraSettings:
    """Settings under `lora.`.

    Attributes:
        split: a key of `SHARES`.
        rank: r.
        alpha: of the factor alpha / r.
        dropout: of what an adapter sees.
        targets: which linear layers have an adapter, see `models.adapters.AdapterSettings`.
        classifier: which modules are trained as a whole, see there.
        base: a file with W_0, see there.
    """

    split: Literal["fedsa", "ffa", "averaged", "local"] = "fedsa"
    rank: Annotated[int, Gt(0)] = 8
    alpha: Annotated[float, Gt(0)] = 16.0
    dropout: Annotated[float, Ge(0), Lt(1)] = 0.05
    targets: str = "auto"
    classifier: str = "auto"
    base: str = ""


def network(settings: LoraSettings) -> NetworkNeeds:
    """A network with adapters, all else of which is fixed."""
    fixed = [part for part, becomes in SHARES[settings.split].items() if becomes == "fixed"]
    return NetworkNeeds(
        adapters=AdapterSettings(
            settings.rank,
            settings.alpha,
            settings.dropout,
            settings.targets,
            settings.classifier,
            settings.base,
            "".join(fixed),
        )
    )


def part_of(name: str) -> str:
    """Which part of the network a tensor is: A, B or classifier.

    Args:
        name: of a tensor that is not fixed.
    """
    return "A" if name.endswith(A) else "B" if name.endswith(B) else "classifier"


def split(manifest: Manifest, settings: LoraSettings) -> Split:
    """The parts that the variant makes personal stay with the client.

    Args:
        manifest: the model's, without what is fixed.
        settings: the variant.
    """
    parts = SHARES[settings.split]
    return split_tensors(manifest, tuple(n for n in manifest.names() if parts[part_of(n)] == "personal"))


def digest_facts(digest: str) -> tuple[int, ...]:
    """A digest as whole numbers, of which a message may hold some.

    Args:
        digest: hexadecimal.
    """
    return tuple(int(digest[at : at + DIGITS], 16) for at in range(0, len(digest), DIGITS))


def check_base(told: Mapping[str, tuple[int, ...]], digest: str, client: str) -> None:
    """R2: refuse to train adapters of another network.

    Args:
        told: the facts of the server's message.
        digest: of what is fixed here.
        client: its id.

    Raises:
        UserError: the server's network is another one.
    """
    if told.get(BASE) != digest_facts(digest):
        raise UserError(
            f"client {client} has another base network than the server, whose adapters would mean nothing on it: "
            "lora.base, hub.folder or torchvision.weights must name the same weights everywhere, bit for bit"
        )


METHOD = Method(
    "strategies.lora:LoraStrategy",
    "clients.lora:LoraClient",
    split,
    LoraSettings,
    averages=True,
    network=network,
    search={
        "lora.split": Choice(("fedsa", "ffa", "averaged"), start="fedsa", source="the paper"),
        "lora.rank": Range(1, 64, start=8, log=True, whole=True, source="the authors' code"),
        "lora.alpha": Range(1.0, 64.0, start=16.0, log=True, source="the authors' code"),
    },
)
