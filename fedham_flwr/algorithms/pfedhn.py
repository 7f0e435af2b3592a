"""pFedHN: a hypernetwork on the server generates each client's whole model from an embedding of the client.

Source: Shamsian, Navon, Fetaya, Chechik, "Personalized Federated Learning using Hypernetworks", ICML 2021,
arXiv:2103.04628, Algorithm 1, and the authors' code. Symbols: h(v; phi) the hypernetwork, v_i the embedding of client
i, w_i the model that is generated for it, w~_i what local training makes of that, u_i a head of the client's own, S the
cohort, n its size, N all clients, d scalars of an embedding.

Identity card
    shared      every layer group, generated; with `personal-layers` all but the last ones. No model is averaged
    personal    running statistics; with `personal-layers` (pFedHN-PC) the last layer groups, u_i
    lives       phi and all v_i on the server; u_i and running statistics with the client
    down, up    P scalars each for every client of the cohort and round
    cost        server: 3 n |phi| multiply-adds, with |phi| about 100 P; |phi| + d N scalars of memory, twice with
                momentum; client: E epochs
    server sees its whole model without running statistics; with `personal-layers` without the last layers
    peers see   models made by a hypernetwork that has learned from all
    bound       C / n times the hypernetwork's learning rate and the norm of its Jacobian moves the hypernetwork

The round
    R1  server: choose S; w_i = h(v_i; phi), for all of S at the same phi       `Generator.generate`
    R2  server: send w_i to client i                                            strategies/pfedhn.py
    R3  client: (w~_i, u_i) <- E epochs of SGD on L_i from (w_i, u_i)           clients/pfedhn.py
    R4  client: keep u_i, send w~_i                                             clients/pfedhn.py
    R5  server: g_i = (d h(v_i; phi) / d phi)^T (w_i - w~_i), and so for v_i     `Generator.step`
    R6  server: phi <- a step of SGD along sum_{S} g_i / n                       `Generator.step`
    R7  server: v_i <- a step of SGD along (d h(v_i; phi) / d v_i)^T (w_i - w~_i), i in S    `Embeddings.step`

w_i - w~_i is the scaled gradient of L_i at w_i, so that the steps descend the mean of the L_i, which is the paper's
objective: all clients count the same, however many samples they have. The paper's server takes a step for one client at
a time, drawn at random. Here a cohort is a batch of clients: phi takes one step along the mean of their gradients, and
each v_i the step that it would take alone, so that a cohort of one client is the paper's. n of the paper's steps go
about n times as far as one along a mean: with many clients in a round a larger `learning-rate` makes up for it.

Settings are those of the authors' code: SGD with rate 0.01, momentum 0.9 and weight decay 0.001, a gradient no longer
than 50, three layers of 100 after the first, embeddings of int(1 + N/4) scalars, N the clients that are there at the
start. Clients trained there by 50 steps of batches of 64, rate 0.005, momentum 0.9, weight decay 5e-5.

Deviations. Momentum and weight decay move no embedding of a client that was not in the cohort; in the authors' code
they do. Running statistics are not generated. What is generated at first is no usual start of a network with
normalisation, whose factors come out near 0 where they begin at 1: with `rank` >= 2 heads are factorised as FedTP's are
here, start from the model's own tensors, and are as small as `rank` models. A novel client learns v alone, without
weight decay, with phi frozen, as in the paper; u along with it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from annotated_types import Ge, Gt, Le, Lt
from jaxtyping import Float
from pydantic import AfterValidator
from torch import Tensor

from fedham_flwr.algorithms.fedtp import MOST, dense_or_more_than_one
from fedham_flwr.core.errors import UserError
from fedham_flwr.core.methods import Method, Split, never, split_tensors
from fedham_flwr.core.parameters import Manifest
from fedham_flwr.core.search_space import Range

CODE = "the authors' code"


@dataclass(frozen=True)
class PFedHNSettings:
    """Settings under `pfedhn.`.

    Attributes:
        section: where they are set, for errors.
        personal_layers: how many of the last layer groups stay with the client (pFedHN-PC); 0 for none.
        embedding_dim: d; 0 for int(1 + N/4) with the N clients that are there at the start.
        hidden_dim: of the hypernetwork's hidden layers.
        hidden_layers: linear layers after the first, each after a ReLU.
        rank: of the hypernetwork's heads, >= 2; 0 for dense ones, as in the paper.
        learning_rate: of the hypernetwork, [0, 1e6].
        embedding_learning_rate: of the embeddings, [0, 1e6]; the authors have one rate for both.
        momentum: of both, in [0, 1).
        weight_decay: of both, [0, 1e6].
        max_norm: a longer gradient of hypernetwork and embeddings is shortened to it; 0 for none.
    """

    section: ClassVar[str] = "pfedhn"
    personal_layers: Annotated[int, Ge(0)] = 0
    embedding_dim: Annotated[int, Ge(0)] = 0
    hidden_dim: Annotated[int, Gt(0)] = 100
    hidden_layers: Annotated[int, Ge(0)] = 3
    rank: Annotated[int, Ge(0), AfterValidator(dense_or_more_than_one)] = 0
    learning_rate: Annotated[float, Ge(0), Le(MOST)] = 0.01
    embedding_learning_rate: Annotated[float, Ge(0), Le(MOST)] = 0.01
    momentum: Annotated[float, Ge(0), Lt(1)] = 0.9
    weight_decay: Annotated[float, Ge(0), Le(MOST)] = 0.001
    max_norm: Annotated[float, Ge(0)] = 50.0


def embedding_size(settings: PFedHNSettings, clients: int) -> int:
    """The size d of an embedding.

    Args:
        settings: the method's.
        clients: N.
    """
    return settings.embedding_dim or int(1 + clients / 4)


def slopes(starts: Float[Tensor, "n ..."], trained: Float[Tensor, "n ..."], weight: float) -> Float[Tensor, "n ..."]:
    """R5: the weighted w_i - w~_i of one tensor of the model.

    Args:
        starts: what was generated for the clients.
        trained: what they made of it.
        weight: of each client.
    """
    return (starts - trained) * weight


def shortening(length: float, most: float) -> float:
    """The factor in (0, 1] that makes a gradient no longer than `most`, as torch's clipping has it; 1 if `most` is 0.

    Args:
        length: of the gradient, >= 0.
        most: >= 0.
    """
    return min(1.0, most / (length + 1e-6)) if most else 1.0


def split(manifest: Manifest, settings: PFedHNSettings) -> Split:
    """The last layer groups and the running statistics stay with the client.

    Args:
        manifest: the model's.
        settings: the method's.

    Raises:
        UserError: no layer group would be left to generate.
    """
    groups, count = manifest.group_names, settings.personal_layers
    if count >= len(groups):
        raise UserError(
            f"pfedhn.personal-layers={count} leaves nothing to generate of the model's {len(groups)} layer groups: "
            f"{', '.join(groups)}"
        )
    kept = {*manifest.names(groups[len(groups) - count :]), *manifest.buffers}
    made = tuple(name for name in manifest.names() if name not in kept)
    return split_tensors(manifest, tuple(name for name in manifest.names() if name in kept), made)


METHOD = Method(
    "strategies.pfedhn:PFedHNStrategy",
    "clients.pfedhn:PFedHNClient",
    split,
    PFedHNSettings,
    counts_samples=never,
    search={
        "pfedhn.learning-rate": Range(0.001, 1.0, start=0.01, log=True, source=CODE),
        "pfedhn.embedding-learning-rate": Range(0.001, 10.0, start=0.01, log=True, source=CODE),
    },
)
