"""FedAMP and HeurFedAMP: the server mixes for each client a cloud model, mostly of models near to its own.

Source: Huang, Chu, Zhou, Wang, Liu, Pei, Zhang, "Personalized Cross-Silo Federated Learning on Non-IID Data", AAAI
2021, arXiv:2007.03797, Algorithm 1. Shape letters: N clients, n of a cohort, P scalars. Symbols: w_i
the last trained model of client i, u_i its cloud model, xi_ij the weight of w_j in it, A(x) = 1 - exp(-x / sigma) the
attention-inducing function of a squared distance, alpha_k the server's step in round k, lambda the weight of closeness.

Identity card
    shared      every layer group; the clients' models are mixed and never averaged into one
    personal    w_i, the model after local training; the running statistics of batch normalisation
    lives       {w_i} and their N N inner products on the server; running statistics with the client
    down, up    P scalars each for every client of the cohort and round
    cost        server: 2 n N P multiply-adds, for distances and mixtures; N (P + N) scalars; client: E epochs, and 2 P
                operations more in each local step
    server sees its whole model without running statistics
    peers see   mixtures of the others' models, which may be mostly one client's
    bound       its weight in the other's cloud model times C, and as much as that weight turns, since it depends on how
                near both models are; a cloud model stays between the models of all clients

The round
    R1  server: choose S; xi_ij of its clients, by distances or by cosines      `attention`, `heuristic`
    R2  server: send u_i = sum_j xi_ij w_j                                         strategies/fedamp.py
    R3  client: w_i <- E epochs of SGD on L_i(w) + lambda / (2 alpha_k) |w - u_i|^2 from u_i    `fedprox.Proximal`
    R4  client: keep its running statistics, send w_i                              clients/fedamp.py
    R5  server: put w_i in place of the old one, and make its row of inner products anew    mixing/gram.py

alpha_k -> 0 gives u_i = w_i: with a pull lambda / alpha_k that stays small, and 0 with lambda = 0, that is local
training. The paper solves for the minimiser in R3 and leaves open where the search for it starts: here in u_i. The pull
has a gradient here; in PFLlib both of its vectors are detached, the client starts from its own model, and what is
called FedAMP there is local training.

Deviations. xi_ii = 1 - sum_j xi_ij is negative if alpha_k is too large a step; the others' weights are then scaled to a
sum of 1, so that a cloud model is always a mean of models. All clients' last models are mixed, absent ones' too. A
client that comes late is mixed into no other client's model until it has trained once. alpha and sigma have to be
tuned to the squared distances of models; a pull with lambda / alpha_k above 2 over the learning rate diverges.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from annotated_types import Ge, Gt, Le
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from fedham_flwr.core.methods import Method, Split, never, split_tensors
from fedham_flwr.core.parameters import Manifest
from fedham_flwr.core.search_space import Range, Space


@dataclass(frozen=True)
class FedAMPSettings:
    """Settings under `fedamp.`.

    Attributes:
        variant: amp, by distances of the models; or heuristic, by their cosines, which is HeurFedAMP.
        alpha: alpha_1 > 0, the step of the first round.
        alpha_decay: what alpha is multiplied with at every `alpha_every`th round, (0, 1].
        alpha_every: rounds.
        penalty: lambda, >= 0.
        sigma: of A > 0, in squared units of the parameters; amp alone.
        self_weight: xi_ii, [0, 1]; heuristic alone.
        sharpness: s >= 0, what cosines are multiplied with before the softmax; heuristic alone.
    """

    variant: Literal["amp", "heuristic"] = "amp"
    alpha: Annotated[float, Gt(0)] = 1.0
    alpha_decay: Annotated[float, Gt(0), Le(1)] = 1.0
    alpha_every: Annotated[int, Gt(0)] = 30
    penalty: Annotated[float, Ge(0)] = 1.0
    sigma: Annotated[float, Gt(0)] = 1.0
    self_weight: Annotated[float, Ge(0), Le(1)] = 0.5
    sharpness: Annotated[float, Ge(0)] = 10.0


def step_of(settings: FedAMPSettings, round_number: int) -> float:
    """alpha_k of a round k, from 1; never 0, however many rounds there are."""
    return max(settings.alpha * settings.alpha_decay ** ((round_number - 1) // settings.alpha_every), 1e-30)


def attention(
    squares: Float[Tensor, "n N"],
    own: Int64[Tensor, " n"],
    allowed: Bool[Tensor, "n N"],
    alpha: float,
    sigma: float,
) -> Float[Tensor, "n N"]:
    """R1 of FedAMP: xi_ij = alpha exp(-|w_i - w_j|^2 / sigma) / sigma, and xi_ii what is left of 1.

    Args:
        squares: |w_i - w_j|^2.
        own: each client's own place among the models.
        allowed: models that may be mixed into it; its own always may.
        alpha: alpha_k.
        sigma: of A.

    Returns:
        Rows that are not negative and sum to 1.
    """
    here = torch.arange(len(own))
    xi = (alpha / sigma) * (-squares / sigma).exp() * allowed
    xi[here, own] = 0.0
    xi = xi / xi.sum(1, keepdim=True).clamp_min(1)
    xi[here, own] = (1 - xi.sum(1)).clamp_min(0)
    return xi


def heuristic(
    cosines: Float[Tensor, "n N"],
    own: Int64[Tensor, " n"],
    allowed: Bool[Tensor, "n N"],
    self_weight: float,
    sharpness: float,
) -> Float[Tensor, "n N"]:
    """R1 of HeurFedAMP: xi_ij = (1 - xi_ii) exp(s cos(w_i, w_j)) / sum_{k != i} exp(s cos(w_i, w_k)).

    Args:
        cosines: cos(w_i, w_j).
        own: as for `attention`.
        allowed: as for `attention`; where there is nobody else the client has its own model alone.
        self_weight: xi_ii.
        sharpness: s.
    """
    here = torch.arange(len(own))
    others = allowed.clone()
    others[here, own] = False
    xi = (sharpness * cosines).masked_fill(~others, -torch.inf).softmax(1).nan_to_num(0.0)  # NaN: nobody else is there
    xi = (1 - self_weight) * xi
    xi[here, own] = torch.where(others.any(1), xi.new_tensor(self_weight), xi.new_tensor(1.0))
    return xi


def split(manifest: Manifest, _settings: FedAMPSettings) -> Split:
    """The running statistics stay with the client."""
    return split_tensors(manifest, manifest.buffers)


SEARCH: Space = {
    "fedamp.alpha": Range(0.01, 100.0, start=1.0, log=True),
    "fedamp.sigma": Range(0.1, 1000.0, start=1.0, log=True),
    "fedamp.penalty": Range(0.01, 10.0, start=1.0, log=True),
    "fedamp.self-weight": Range(0.05, 0.95, start=0.5),
}
METHOD = Method(
    "strategies.fedamp:FedAMPStrategy",
    "clients.fedamp:FedAMPClient",
    split,
    FedAMPSettings,
    personal_model="after",
    mixes=True,
    counts_samples=never,
    search=SEARCH,
    composes=True,
)
