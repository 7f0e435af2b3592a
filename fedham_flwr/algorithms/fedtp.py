"""FedTP: every client's self-attention has query, key and value projections of its own; all else is averaged.

Source: Li, Cai, Wang, Tang, Ding, Lin, Shi, "FedTP: Federated Learning by Transformer Personalization", IEEE TNNLS
2023, arXiv:2211.01572, and the authors' code. Symbols: W_i the projections of client i in all layers, xi everything
else, h(z; phi) the hypernetwork with client embeddings z_i, m_i training samples, p_i = m_i / sum_{S} m, E epochs.

Identity card
    shared      xi, every layer group but `attention`; with generated projections h and z_i too, which never travel
    personal    W_i = h(z_i; phi), or vanilla: W_i itself; `head`: the last linear layer, or a second one
    lives       xi, phi, z_i on the server; vanilla W_i and personal heads with the client
    down, up    P scalars each for every client of the cohort and round; vanilla: without W_i
    cost        server: |S| P and 3 |S| |phi| multiply-adds; |phi| + d scalars a client of memory; client: E epochs
    server sees its whole model with its own self-attention, but for a personal head; vanilla: without self-attention
                too
    peers see   the mean of the rest; self-attention made by a hypernetwork that has learned from all
    bound       p C for what is averaged; the hypernetwork moves by at most its learning rate times p C times the norm
                of its Jacobian

The round
    R1  server: choose S; W_i = h(z_i; phi) for all of S at once                 `Generator.generate`
    R2  server: send (W_i, xi) to client i                                       strategies/fedtp.py
    R3  client: (Wt_i, xit_i) <- E epochs of SGD on L_i from (W_i, xi) and its own head   clients/fedtp.py
    R4  client: keep what is personal, send the rest and m_i                     clients/fedtp.py
    R5  server: xi <- sum_{S} p_i xit_i                                          `fedavg.aggregate`
    R6  server: G = sum_{S} p_i (d h(z_i; phi) / d(phi, z))^T (W_i - Wt_i)  (12)  `Generator.step`
    R7  server: (phi, z_i for i in S) <- a step of SGD with momentum and weight decay along G    `generator`

With other settings under `server.` R5 is not a mean; R6 is the sum that it is, of all replies.

W_i - Wt_i = -delta_i is the scaled gradient of L_i at W_i, so G descends sum_i p_i L_i. Clients that were not sampled
keep z_i and its momentum bit for bit; in the authors' code weight decay and momentum move them every round.

Deviations. `rank` >= 2 factorises the heads of h: a layer's projections are a common tensor, which starts as the
model's own, and a combination of `rank` tensors with the client's coefficients, a vector of fixed length; rank 0 is the
paper's. The learning rates are 0.1 for phi and 1 for z, where the authors have 0.01 for both: with momentum 0.9, what
is common to all W_i then moves about as far as averaging would move it, and J_z is so small that z would hardly move at
0.01. With coefficients of free length 0.2 and 10 diverged after 20 to 30 rounds; dense heads have that freedom.
`vanilla` keeps W_i with the client and has no hypernetwork. A novel client learns z alone, from a draw like any
other's: phi and xi are frozen, and a turn is z <- z - eta J_z^T (W - Wt), with momentum and without weight decay, after
local steps on W; a personal head is trained along with W.

Combinations (authors' code): `head="fedper"` keeps the last linear layer with the client. `head="fedrod"` (Chen, Chao,
ICLR 2022) trains the shared head by the balanced softmax and adds a personal linear layer on detached features, which
starts at zero and whose logits are added. `knn` mixes the softmax with a vote of the k nearest of the client's own
training features, as kNN-Per does.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from annotated_types import Ge, Gt, Le, Lt
from pydantic import AfterValidator

from fedham_flwr.core.errors import UserError
from fedham_flwr.core.methods import Method, NetworkNeeds, Split, split_tensors
from fedham_flwr.core.parameters import Manifest
from fedham_flwr.core.search_space import VALIDATED, Range
from fedham_flwr.models.heads import HeadSettings

GROUP = "attention"
"""The layer group that is personal: the query, key and value projections of all layers."""
MOST = 1e6
"""The largest rate or decay, far above any of use: torch refuses a factor that float32 can't hold."""


def dense_or_more_than_one(rank: int) -> int:
    """The rank of a hypernetwork's heads, refused if it is 1.

    One coefficient of fixed length is 1 or -1: it has no gradient, so no embedding would ever learn.

    Raises:
        ValueError: it is 1.
    """
    if rank == 1:
        raise ValueError("wanted 0 (dense heads) or at least 2, since one coefficient of fixed length can't learn")
    return rank


@dataclass(frozen=True)
class FedTPSettings:
    """Settings under `fedtp.`.

    Attributes:
        section: where they are set, for errors.
        personal: generated (by a hypernetwork on the server), or vanilla (kept by the client).
        rank: of the hypernetwork's heads, >= 2; 0 for dense ones, as in the paper, of 90 times the model's size.
        embedding_dim: d, of a client's embedding.
        hidden_dim: of the hypernetwork's hidden layers.
        hidden_layers: linear layers after the first, each after a ReLU.
        learning_rate: of the hypernetwork, [0, 1e6].
        embedding_learning_rate: of the embeddings, [0, 1e6]; with both 0, W_i never changes.
        momentum: of both, in [0, 1).
        weight_decay: of both, [0, 1e6].
        head: shared; fedper (the last layer group stays with the client); fedrod (a personal head is added).
        knn: whether evaluation asks the nearest of the client's own training samples.
        knn_neighbours: k.
        knn_share: of the neighbours' vote in the prediction, [0, 1].
    """

    section: ClassVar[str] = "fedtp"
    personal: Literal["generated", "vanilla"] = "generated"
    rank: Annotated[int, Ge(0), AfterValidator(dense_or_more_than_one)] = 8
    embedding_dim: Annotated[int, Gt(0)] = 128
    hidden_dim: Annotated[int, Gt(0)] = 150
    hidden_layers: Annotated[int, Ge(0)] = 3
    learning_rate: Annotated[float, Ge(0), Le(MOST)] = 0.1
    embedding_learning_rate: Annotated[float, Ge(0), Le(MOST)] = 1.0
    momentum: Annotated[float, Ge(0), Lt(1)] = 0.9
    weight_decay: Annotated[float, Ge(0), Le(MOST)] = 0.001
    head: Literal["shared", "fedper", "fedrod"] = "shared"
    knn: bool = False
    knn_neighbours: Annotated[int, Gt(0)] = 10
    knn_share: Annotated[float, Ge(0), Le(1)] = 0.6


def check_target(settings: FedTPSettings, target: str) -> None:
    """Refuse what is defined for classes only.

    Args:
        settings: the method's.
        target: what is learned, as `data.batches.Target` has it.

    Raises:
        UserError: FedRoD's balanced loss or the vote of neighbours, without classes.
    """
    given = ['fedtp.head="fedrod"'] * (settings.head == "fedrod") + ["fedtp.knn=true"] * settings.knn
    if given and target not in ("class", "next-token"):
        verb = "are" if len(given) > 1 else "is"
        raise UserError(f"{' and '.join(given)} {verb} for classes, and the target is {target}: wanted other settings")


def check_model(groups: tuple[str, ...], model: str) -> None:
    """Refuse a model without self-attention.

    Args:
        groups: its layer groups.
        model: its name.

    Raises:
        UserError: it has no layer group `attention`.
    """
    if GROUP not in groups:
        raise UserError(
            f'strategy="fedtp" personalises self-attention, and model="{model}" has none: try model="vit" for images, '
            '"char-transformer" for text, "text-transformer" for text with labels or "series-transformer" for series'
        )


def personal_groups(groups: tuple[str, ...], settings: FedTPSettings) -> tuple[str, ...]:
    """Names of the layer groups that stay with the client, in the model's order.

    Args:
        groups: the model's, from the input to the output; with fedrod the last one is the personal head.
        settings: the method's settings.
    """
    kept = {GROUP} if settings.personal == "vanilla" else set()
    if settings.head != "shared":
        kept.add(groups[-1])
    return tuple(name for name in groups if name in kept)


def split(manifest: Manifest, settings: FedTPSettings) -> Split:
    """The personal head, if there is one, and with vanilla self-attention stay with the client.

    Args:
        manifest: of a model with self-attention.
        settings: the method's.
    """
    adapted = manifest.names([GROUP]) if settings.personal == "generated" else ()
    return split_tensors(manifest, manifest.names(personal_groups(manifest.group_names, settings)), adapted)


def network(settings: FedTPSettings) -> NetworkNeeds:
    """With fedrod a second head."""
    return NetworkNeeds(head=HeadSettings("second", 'fedtp.head="fedrod"') if settings.head == "fedrod" else None)


METHOD = Method(
    "strategies.fedtp:FedTPStrategy",
    "clients.fedtp:FedTPClient",
    split,
    FedTPSettings,
    network=network,
    search={
        "fedtp.learning-rate": Range(0.01, 1.0, start=0.1, log=True, source=VALIDATED),
        "fedtp.embedding-learning-rate": Range(0.01, 10.0, start=1.0, log=True, source=VALIDATED),
    },
)
