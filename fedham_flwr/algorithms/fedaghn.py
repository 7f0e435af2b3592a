"""FedAGHN: each client starts from a mixture of all models, weighed layer by layer by how alike their updates are.

Source: Song, Shen, Hou, Wang, Wang, Tang, Lv, "FedAGHN: Personalized Federated Learning with Attentive Graph
HyperNetworks", Knowledge-Based Systems 2025, arXiv:2501.16379; equations and values after the authors' code. Symbols:
w_j^l layer l of client j's last model, D_j^l its last update, what training added to it; beta_i^l temperature and
gamma_i^l self-weight of client i (q_i and p_i in the paper, as their code says); h_i what i starts from, wt_i what it
makes of it, S the cohort; N clients, n of them in the cohort, L layer groups, P scalars.

Identity card
    shared      every layer group; the clients' models are mixed and never averaged into one
    personal    the mixed model; the running statistics of batch normalisation
    lives       {w_j}, {D_j}, beta_i and gamma_i on the server; running statistics with the client
    down, up    P scalars each for every client of the cohort and round
    cost        server: 5 n N P multiply-adds; 2 N (P + L) + L N^2 scalars of memory; client: E epochs
    server sees its whole model without running statistics
    peers see   mixtures of the others' models
    bound       its largest weight in the other's mixture times C, and how far its new update turns attention

The round
    R1  server: choose S; a_ij = softmax_{j != i}(beta_i cos(D_i, D_j)), a_ii = max(gamma_i, 0)    `attend`
    R2  server: A_ij = a_ij / sum_k a_ik; send h_i = sum_j A_ij w_j, each layer by its own row    `Pool.mixtures`
    R3  client: wt_i <- E epochs of SGD on L_i from h_i                         clients/fedaghn.py
    R4  client: keep its running statistics, send wt_i                          clients/fedaghn.py
    R5  server: S_ij = <h_i - wt_i, w_j>, then w_i <- wt_i and D_i <- wt_i - h_i, for i in S    `Pool.absorb`
    R6  server: (beta_i, gamma_i) <- less rate times J_i^T (h_i - wt_i), gamma_i >= 0    `gradient`

J_i is the Jacobian of h_i in both scalars, so that J_i^T (h_i - wt_i) needs S_ij alone. h_i - wt_i stands for the
gradient of L_i at h_i and is taken as it is, neither divided by the learning rate nor by the number of steps. With
beta = 0 all peers weigh the same. An update of which there is none yet has cosine 0 with every other one, so that peers
weigh the same in the first round. A client that comes late is mixed into no other client's model, its own included,
until it has trained once; a novel client starts from the plain mean of all.

Sign. The authors' code goes up this gradient where the steps should go down: it hands J_i^T (wt_i - h_i) to an
optimiser that descends. `direction="ascent"` does as the code, and so presumably as the published numbers. At
gamma = 0 the slope is that from above, so that gamma can grow again; a clamp of torch may have none there.

`amn.meta="aghn"` is this attention in AMN: its gate u is log gamma, so that sigmoid(u) = A_ii, and its rows and slopes
are these for the same features, dJ/du being gamma dJ/dgamma. It differs in what is looked at, projections of updates of
all rounds in place of the last ones, less the mean of all clients'; in a q that starts at 5 by default and not at 1;
in steps of Adam on log gamma, which keep it positive, and in scores divided by the reach of training.

The authors' settings: 20 clients, all in every round, a CNN with batch normalisation, batches of 64, rate 0.01, 5 local
epochs, 200 rounds, beta 0.5 and gamma 0.03 at the start, rate 0.005 without momentum for both.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal, NamedTuple

import torch
from annotated_types import Ge, Le
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from fedham_flwr.algorithms.amn import split
from fedham_flwr.algorithms.fedtp import MOST
from fedham_flwr.core.methods import Method, never
from fedham_flwr.core.search_space import Range

SCRIPT = "the authors' script"


@dataclass(frozen=True)
class FedAGHNSettings:
    """Settings under `fedaghn.`.

    Attributes:
        beta: of every client and layer at the start, [0, 1e6]; it may learn to be negative.
        gamma: of every client and layer at the start, [0, 1e6].
        learning_rate: of both, [0, 1e6]; with 0 they stay as they are.
        direction: descent; or ascent, as in the authors' code.
    """

    beta: Annotated[float, Ge(0), Le(MOST)] = 0.5
    gamma: Annotated[float, Ge(0), Le(MOST)] = 0.03
    learning_rate: Annotated[float, Ge(0), Le(MOST)] = 0.005
    direction: Literal["descent", "ascent"] = "descent"


class Rows(NamedTuple):
    """What `attend` gives."""

    a: Tensor  # float [n, L, N], weights over peers that sum to 1, or to 0 where there is none
    weights: Tensor  # float [n, L, N], A: the row of the mixture, which sums to 1
    self_weight: Tensor  # float [n, L], A_ii


def cosines(
    products: Float[Tensor, "n N"], mine: Float[Tensor, " n"], others: Float[Tensor, " N"]
) -> Float[Tensor, "n N"]:
    """R1: cos(D_i, D_j) in [-1, 1], 0 where one of the two is 0.

    Args:
        products: <D_i, D_j>.
        mine: |D_i|^2.
        others: |D_j|^2 of all.
    """
    lengths = mine.sqrt()[:, None] * others.sqrt()
    return torch.where(lengths > 0, products / lengths.clamp_min(torch.finfo(products.dtype).tiny), 0.0).clamp(-1, 1)


def attend(
    beta: Float[Tensor, "n L"],
    gamma: Float[Tensor, "n L"],
    alike: Float[Tensor, "n L N"],
    own: Int64[Tensor, " n"],
    allowed: Bool[Tensor, "n N"],
) -> Rows:
    """R1, R2: the rows of n clients over N models.

    Args:
        beta: temperatures.
        gamma: self-weights.
        alike: cosines of the updates.
        own: each client's own place among the models.
        allowed: models that may be mixed, a client's own among them. Where there is no other it gets its own.
    """
    i, peers = torch.arange(len(own)), allowed.clone()
    peers[i, own] = False
    scores = (beta[..., None] * alike).masked_fill(~peers[:, None], -torch.inf)
    a = scores.softmax(-1).nan_to_num(0.0)  # NaN: nobody else is there
    itself = torch.where(allowed[i, own][:, None], gamma.clamp_min(0.0), 0.0)
    itself = torch.where(peers.any(-1)[:, None], itself, 1.0)
    place = own[:, None, None].expand(-1, a.shape[1], 1)
    whole = a.scatter(-1, place, itself[..., None])
    weights = whole / whole.sum(-1, keepdim=True)
    return Rows(a, weights, weights.gather(-1, place).squeeze(-1))


def gradient(
    rows: Rows,
    alike: Float[Tensor, "n L N"],
    own: Int64[Tensor, " n"],
    allowed: Bool[Tensor, "n N"],
    scores: Float[Tensor, "n L N"],
) -> tuple[Float[Tensor, "n L"], Float[Tensor, "n L"]]:
    """R6: J^T (h_i - wt_i), the gradients with respect to beta and gamma; at gamma = 0 that from above.

    Args:
        rows: what `attend` gave.
        alike: as there.
        own: as there.
        allowed: as there.
        scores: S_ij = <h_i - wt_i, w_j> of each layer, j = i included.
    """
    rest, mean = 1 - rows.self_weight, (rows.a * scores).sum(-1)  # 1 / (1 + gamma), as a_i sums to 1
    of_beta = rest * (rows.a * (scores - mean[..., None]) * alike).sum(-1)
    itself = scores.gather(-1, own[:, None, None].expand(-1, scores.shape[1], 1)).squeeze(-1)
    counts = allowed[torch.arange(len(own)), own][:, None]
    return of_beta, rest.square() * (itself - mean) * counts


METHOD = Method(
    "strategies.fedaghn:FedAGHNStrategy",
    "clients.fedaghn:FedAGHNClient",
    split,
    FedAGHNSettings,
    mixes=True,
    counts_samples=never,
    search={
        "fedaghn.learning-rate": Range(0.0005, 0.5, start=0.005, log=True, source=SCRIPT),
        "fedaghn.beta": Range(0.1, 10.0, start=0.5, log=True, source=SCRIPT),
        "fedaghn.gamma": Range(0.005, 1.0, start=0.03, log=True, source=SCRIPT),
    },
    composes=True,
)
