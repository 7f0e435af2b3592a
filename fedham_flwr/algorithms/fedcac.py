"""FedCAC: parameters that local training depends on most are shared with similar clients only, the others with all.

Source: Wu, Liu, Niu, Zhu, Tang, "Bold but Cautious: Unlocking the Potential of Personalized Federated Learning through
Cautiously Aggressive Collaboration", ICCV 2023, arXiv:2309.11103, and the authors' code. Shape letters: N clients, n of
a cohort, P scalars. Symbols: w_i the last trained model of client i, m_i its training samples, s_i what that training
began with, M_i the mask of its critical parameters, tau their share in each tensor, O_ij the overlap of two masks, w
the mean of the models, u_i the mean of the models of client i and those similar to it, t a round, from 1.

Identity card
    shared      every layer group; what of it comes from whom differs by client and parameter
    personal    the model that is put together for the client
    lives       {w_i}, {M_i}, their N N counts and w on the server; the clients keep nothing
    down, up    P scalars each for every client of the cohort and round
    cost        server: 2 n N P multiply-adds, for overlaps and means of critical parameters, and n P to make the starts
                once more; N (P + P / 32 + N) scalars; client: E epochs
    server sees its whole model after each training, and so which parameters moved most
    peers see   the mean of the models, and in critical parameters that of a few
    bound       p C where parameters are not critical; where they are, C over how many are similar, and as much as the
                others' masks and the threshold move who they are, in a mean of a few models

The round
    R1  server: choose S; C_i = {i} and all j with O_ij >= threshold_t          `overlaps`, `threshold`
    R2  server: send s_i = M_i u_i + (1 - M_i) w, with u_i the plain mean over C_i    `together`
    R3  client: w_i <- E epochs of SGD on L_i from s_i                          clients/fedcac.py
    R4  client: send w_i and m_i                                                clients/fedcac.py
    R5  server: M_i <- the tau largest of |(w_i - s_i) w_i| in each tensor      `critical`
    R6  server: w <- sum_{k in S} m_k w_k / sum_{k in S} m_k                    `fedavg.aggregate`

O_ij = 1 - |M_i - M_j|_1 / (2 |M_i|_1), which is the share of critical parameters that both have, since all masks have
as many. threshold_t = mean O + (t / beta) (max O - mean O) over pairs of different clients: it rises until, after beta
rounds, C_i is the client alone, unless all pairs overlap alike, as two clients always do. tau = 0 is FedAvg. tau = 1
without similar clients would be local training, but then all masks are alike and u_i is everybody's plain mean. In the
first round, and for a client that has never trained, s_i = w.

Deviations. The authors' mask is what reaches the tau-th largest value, and leaves out parameters that did not move;
here it is exactly so many, of equal ones the first, so that tau = 1 is all of them. Overlaps are with the last masks of
all clients that have trained, absent ones' too; w is the mean of the cohort. Running statistics are as in w.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

import torch
from annotated_types import Ge, Gt, Le
from jaxtyping import Bool, Float, Int
from torch import Tensor

from fedham_flwr.algorithms.fedavg import split
from fedham_flwr.core.methods import Method
from fedham_flwr.core.parameters import Params
from fedham_flwr.core.search_space import Range, Space


@dataclass(frozen=True)
class FedCACSettings:
    """Settings under `fedcac.`; the defaults are the authors'.

    Attributes:
        share: tau, of each tensor's parameters, that are critical, [0, 1].
        rounds: beta >= 1, after how many rounds no client is similar enough any more.
    """

    share: Annotated[float, Ge(0), Le(1)] = 0.5
    rounds: Annotated[int, Gt(0)] = 100


def many(count: int, share: float) -> int:
    """How many of a tensor's parameters are critical: tau of them, rounded down."""
    return int(share * count)


def critical(before: Tensor, after: Tensor, share: float) -> Tensor:
    """R5: which parameters of a tensor are critical, a bool for each; of equal ones the first.

    Args:
        before: of s_i.
        after: of w_i.
        share: tau.
    """
    sensitivity = ((after - before) * after).abs().flatten()
    mask = torch.zeros(len(sensitivity), dtype=torch.bool)
    mask[sensitivity.argsort(descending=True, stable=True)[: many(len(sensitivity), share)]] = True
    return mask.view(after.shape)


def overlaps(shared: Int[Tensor, "n N"], count: int) -> Float[Tensor, "n N"]:
    """R1: O_ij, float64.

    Args:
        shared: how many parameters both hold critical.
        count: how many each does; with none, there is no overlap.
    """
    return shared.double() / max(1, count)


def threshold(mean: float, most: float, round_number: int, rounds: int) -> float:
    """R1: what O_ij must reach for client j to be similar.

    Args:
        mean: of O_ij over i != j.
        most: the largest of them.
        round_number: t.
        rounds: beta.
    """
    return mean + round_number / rounds * (most - mean)


def similar(
    overlap: Float[Tensor, "n N"], own: Int[Tensor, " n"], known: Bool[Tensor, " N"], least: float
) -> Float[Tensor, "n N"]:
    """R1: the weights of the models in u_i, one over the size of C_i for those in it; rows sum to 1.

    Args:
        overlap: O_ij.
        own: each client's own place, which is in C_i.
        known: who has a mask.
        least: the threshold.
    """
    members = (overlap >= least) & known
    members[torch.arange(len(own)), own] = True
    return members / members.sum(1, keepdim=True, dtype=torch.float64)


def together(mask: Mapping[str, Tensor], few: Params, common: Params) -> Params:
    """R2: M_i u_i + (1 - M_i) w; what has no mask is w's.

    Args:
        mask: M_i, for each parameter.
        few: u_i.
        common: w.
    """
    return {name: torch.where(mask[name], few[name], t) if name in mask else t for name, t in common.items()}


AUTHORS = "the authors' code"
SEARCH: Space = {
    "fedcac.share": Range(0.1, 0.9, start=0.5, source=AUTHORS),
    "fedcac.rounds": Range(10, 500, start=100, log=True, whole=True, source=AUTHORS),
}
METHOD = Method(
    "strategies.fedcac:FedCACStrategy",
    "clients.fedcac:FedCACClient",
    split,
    FedCACSettings,
    mixes=True,
    composes=True,
    search=SEARCH,
)
