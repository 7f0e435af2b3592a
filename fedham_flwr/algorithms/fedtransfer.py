"""Fed_T and Fed_T_A: FedAvg, then on each client a stage of its own, with frozen low-level layers and new attention.

Source: Zhang, Liu, "Personalized Federated Learning with Attention Mechanisms", 2022; the attention block: Woo et al.,
"CBAM: Convolutional Block Attention Module", ECCV 2018. Symbols: w the global model, w_k client k's model after local
training, m_k its training samples, S the cohort of the round, E and E' epochs of a round and of the personal stage,
theta_L the low-level layers (the convolutions), theta_H the others, a_k the attention block of client k.

Identity card
    shared      every layer group, while the rounds last
    personal    from the personal stage on theta_H,k and a_k; theta_L is everybody's
    lives       w on the server; the whole personal model (theta_L, a_k, theta_H,k) with the client
    down, up    P scalars each for every client of the cohort and round; for the personal stage P down once, none up
    cost        server: |S| P multiply-adds a round; client: E epochs a round, and E' epochs once, without the
                gradient of theta_L
    server sees its whole model after each training; of the personal stage scores only, unless it starts from models of
                an earlier run, which the server then has
    peers see   the mean of the models
    bound       p C

The round
    R1  server: choose S, send w to each of its clients                         strategies/fedtransfer.py
    R2  client: w_k <- E epochs of SGD on L_k from w                            clients/fedtransfer.py
    R3  client: send w_k and m_k                                                clients/fedtransfer.py
    R4  server: w <- sum_{k in S} m_k w_k / sum_{k in S} m_k                    `fedavg.aggregate`
    R5  server: after the last round, send w to every client                    strategies/fedtransfer.py
    R6  client: put a_k behind the last convolution of w                        clients/fedtransfer.py
    R7  client: (theta_H,k, a_k) <- E' epochs of SGD on L_k, theta_L frozen      clients/fedtransfer.py
    R8  client: keep the model, send its scores alone                           clients/fedtransfer.py

`attention="none"` is Fed_T, `"cbam"` Fed_T_A. The paper names the layers that Fed_T_A trains twice, and differently:
reading F1 trains all fully connected layers as Fed_T does, F2 leaves the first of them frozen too.

Deviations. The paper inserts a fresh block, which halves the features twice: every map of an untrained CBAM is about
1/2, and the layers behind it were trained without. Here both maps are exactly 1/2 at first, and the block's output is
multiplied by 4, so the logits do not change (`insertion="plain"` is the paper's, and until the personal stage its block
changes nothing either). Rounds, epochs and the optimiser are not given there. `se` and `adapter` are for comparison:
channel attention alone, and a residual bottleneck.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Ge, Gt

from fedham_flwr.core.errors import UserError
from fedham_flwr.core.methods import Method, NetworkNeeds, Split, split_groups
from fedham_flwr.core.parameters import LayerGroup, Manifest
from fedham_flwr.core.search_space import Choice, Range
from fedham_flwr.models.grafts import GraftSettings

AUTO = "auto"
OWN = "own"
"""Name of the fact that says that what a client is sent is its own model."""


@dataclass(frozen=True)
class FedTransferSettings:
    """Settings under `fedtransfer.`.

    Attributes:
        personal_epochs: E'.
        learning_rate: of the personal stage; 0 for that of the rounds.
        attention: the block of each client's own: none (Fed_T), cbam (Fed_T_A), se or adapter.
        graft_after: the layer group that the block follows; auto: the last convolution's.
        reading: F1 or F2, which layer groups `auto` freezes.
        frozen: names of the layer groups that the personal stage does not train, with blanks between; empty for none;
            auto: the low-level ones, and with F2 the first one after them.
        reduction: the block's hidden layer has its channels divided by this.
        insertion: identity (the logits do not change), or plain (fresh, as in the paper, once the rounds are over).

    Raises:
        ValueError: both `reading` and `frozen` say what is frozen.
    """

    personal_epochs: Annotated[int, Ge(0)] = 5
    learning_rate: Annotated[float, Ge(0)] = 0.0
    attention: Literal["none", "cbam", "se", "adapter"] = "none"
    graft_after: str = AUTO
    reading: Literal["F1", "F2"] = "F1"
    frozen: str = AUTO
    reduction: Annotated[int, Gt(0)] = 16
    insertion: Literal["identity", "plain"] = "identity"

    def __post_init__(self) -> None:
        if self.reading == "F2" and self.frozen != AUTO:
            raise ValueError(
                f'fedtransfer.reading="F2" says what is frozen, and so does fedtransfer.frozen="{self.frozen}": wanted '
                'fedtransfer.frozen="auto" or reading "F1"'
            )


def block_groups(settings: FedTransferSettings) -> tuple[str, ...]:
    """The layer group of the client's own block, which bears the name of its kind; none for Fed_T."""
    return () if settings.attention == "none" else (settings.attention,)


def frozen_groups(groups: Sequence[LayerGroup], settings: FedTransferSettings) -> tuple[str, ...]:
    """Names of the layer groups that the personal stage leaves as they are.

    Args:
        groups: the model's, from the input to the output.
        settings: `frozen` and `reading`.

    Raises:
        UserError: there are none to choose by themselves, a name matches nothing, or nothing would be trained.
    """
    names = [group.name for group in groups]
    if settings.frozen == AUTO:
        low = [group.name for group in groups if group.low_level]
        if not low:
            raise UserError(
                'fedtransfer.frozen="auto" freezes convolutions, and this model has none: name some of its layer '
                f"groups {', '.join(names)}, or none"
            )
        high = [name for name in names if name not in (*low, *block_groups(settings))]
        return tuple(low + high[:1] if settings.reading == "F2" else low)
    frozen = settings.frozen.split()
    if unknown := [name for name in frozen if name not in names]:
        raise UserError(
            f'fedtransfer.frozen="{settings.frozen}": the model has no layer group {", ".join(unknown)}; wanted some '
            f"of {', '.join(names)}, with blanks between"
        )
    if set(frozen) == set(names):
        raise UserError(f'fedtransfer.frozen="{settings.frozen}" leaves nothing to train: wanted some layer group free')
    return tuple(name for name in names if name in frozen)


def split(manifest: Manifest, settings: FedTransferSettings) -> Split:
    """The client's own block stays with the client."""
    return split_groups(manifest, block_groups(settings))


def network(settings: FedTransferSettings) -> NetworkNeeds:
    """The block, where it is inserted, and its settings."""
    return NetworkNeeds(
        graft=GraftSettings(settings.attention, settings.graft_after, settings.reduction, settings.insertion)
    )


METHOD = Method(
    "strategies.fedtransfer:FedTransferStrategy",
    "clients.fedtransfer:FedTransferClient",
    split,
    FedTransferSettings,
    averages=True,
    personal_stage=True,
    network=network,
    search={
        "fedtransfer.personal-epochs": Range(1, 20, start=5, log=True, whole=True),
        "fedtransfer.learning-rate": Choice((0.0, 0.001, 0.005, 0.02, 0.1), start=0.0),
    },
)
