"""AMN: a meta-model for each client, hosted by the server, attends over the clients' models and mixes a hybrid.

Faithful to the abstract of Gao, Wang, Liu, Ma, Journal of Computer Research and Development 61(1), 196-208, 2024,
10.7544/issn1000-1239.202220922, and not more: its full text could not be read. The predecessor of FedHAM, whose file
says what is open; the mathematics of both is here. Shape letters: N clients in the pool, n of a cohort, L units, d
feature, k key, P scalars of a unit. w_j: last model of client j, psi_i: meta-model of client i, R: signed projection,
eta_m: meta learning rate. A unit is a layer group, or the model.

Identity card
    shared      every layer group; the clients' models are mixed and never averaged into one
    personal    the mixed model; the running statistics of batch normalisation
    lives       pool {w_j} and psi_i = (W_Q, W_K, W_Q2, W_K2, b0) on the server; running statistics with the client
    down, up    P scalars each, for every client of the cohort and round
    cost        server: 3 n N P multiply-adds, n P additions; N (P + |psi|) scalars of memory; client: E epochs
    server sees its whole model without running statistics; its meta-model is the server's
    peers see   mixtures of the others' models
    bound       its largest weight in the other's mixture times C, and how far attention turns in the pool that it is in
                (with `sample-power` that weight grows with the samples that it says it has)

The round
    R1  server: choose S; f_j = LN(dir U_j - pref) (7); rows a_ij, beta_i (8), (9)  `features`, `attend`
    R2  server: send h_i = beta_i w_i + (1 - beta_i) sum_j a_ij w_j                 `bank.Bank.mix`
    R3  client: wt_i <- E epochs of SGD on L_i from h_i                             clients/amn.py
    R4  client: keep its running statistics, send wt_i                              clients/amn.py
    R5  server: S_ij = <h_i - wt_i, w_j> / (eta K), U_i <- mu U_i + dir R (wt_i - h_i),
        then w_i <- wt_i, for i in S                                `bank.Bank.absorb`, `Projections.update`
    R6  server: psi_i <- descend by (10)                                            `gradient`, meta_models.py

(h_i - wt_i) / (eta K) is the gradient of L_i at h_i if training is one step of SGD, and stands for it otherwise; eta is
that of the round, over 1 - momentum. With another optimiser, or gradients that are clipped, it does not, and the run is
refused. The unit is the whole model by default. A client that comes late is mixed into no other client's model, its own
included, until it has trained once. With `candidates`, of no paper, the N of (8) to (10) are K + 1, each client's own;
nor are `sample-power` and `staleness-discount`, by which rows start from shares of samples and of late models.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from operator import attrgetter
from typing import Annotated, Literal, NamedTuple

import torch
from annotated_types import Ge, Gt, Le
from jaxtyping import Bool, Float, Int64, Shaped
from torch import Tensor
from torch.nn.functional import layer_norm, normalize

from fedham_flwr.core.methods import Method, Split, split_tensors
from fedham_flwr.core.parameters import Manifest, Params
from fedham_flwr.core.search_space import Range, Space

TINY = 1e-12
"""Added to the variance of features: far below that of models that differ, so that equal ones have features of 0."""


@dataclass(frozen=True)
class AttentionSettings:
    """Settings of the meta-models, under `fedham.` and `amn.`.

    Attributes:
        unit: what has a row of weights of its own: each layer group; all but the last (body), and the last, the head,
            another one; or the whole model.
        features_of: whose projections a row is made from: its own layer groups', the head's, or all, added up.
        meta: attention, or aghn for FedAGHN's temperature and gate.
        feature_dim: d.
        key_dim: k, of queries and keys.
        reference: what features are of. update: U_j, the sum over rounds of where training went apart from the other
            clients', of length 1 in each round. mean or start: the model less the pool's mean, or the common start.
        update_momentum: mu, in [0, 1], the share of that sum that a round leaves, with update; below 1 it forgets.
        peer_bias: whether each peer has a free bias in layer one.
        prior_penalty: rho >= 0, in nats of the loss, of a row's divergence from the row of a meta-model at its start.
        optimizer: adam; normalised, for steps of length eta_m per unit; or sgd, which depends on the loss's scale.
        learning_rate: eta_m >= 0; with 0 the weights stay equal.
        initial_temperature: a_ij of (8) starts as the softmax of so many times the cosine of f_i and f_j, on average
            over the first queries; 0: equal, with aghn 1. Of no paper, but as its q.
        sample_power: gamma in [0, 4]: weights are in proportion to m_j^gamma, m_j client j's training samples, before
            anything is learned of them. With 1 and no likeness the start is FedAvg's mean. Of no paper.
        staleness_discount: in (0, 1], and to its power for as many trainings of others as there are clients. As above.
        max_logit_step: the most by which one step moves a logit of (8) or (9), features constant; with it a gate goes
            no farther than it comes back. 0: any. Of no paper.
        candidates: K, peers that a client looks at, beside its own model; 0 for all. Of no paper.
        candidates_drawn: share of those K that is drawn, in [0, 1]; the others have the nearest features.
    """

    unit: Literal["layer", "body", "model"] = "layer"
    features_of: Literal["own", "head", "all"] = "own"
    meta: Literal["attention", "aghn"] = "attention"
    feature_dim: Annotated[int, Gt(1)] = 64
    key_dim: Annotated[int, Gt(0)] = 32
    reference: Literal["update", "mean", "start"] = "update"
    update_momentum: Annotated[float, Ge(0), Le(1)] = 1.0
    peer_bias: bool = False
    prior_penalty: Annotated[float, Ge(0)] = 0.0
    optimizer: Literal["adam", "normalised", "sgd"] = "adam"
    learning_rate: Annotated[float, Ge(0)] = 0.01
    initial_temperature: Annotated[float, Ge(0)] = 5.0
    sample_power: Annotated[float, Ge(0), Le(4)] = 0.0
    staleness_discount: Annotated[float, Gt(0), Le(1)] = 0.1
    max_logit_step: Annotated[float, Ge(0)] = 0.3
    candidates: Annotated[int, Ge(0)] = 0
    candidates_drawn: Annotated[float, Ge(0), Le(1)] = 0.25


@dataclass(frozen=True)
class AMNSettings(AttentionSettings):
    """Settings under `amn.`, as of `AttentionSettings`; by default one row of the model, which counts samples."""

    unit: Literal["layer", "body", "model"] = "model"
    sample_power: Annotated[float, Ge(0), Le(4)] = 1.0


class Rows(NamedTuple):
    """What `attend` gives: weights over peers, gates, and what the gradient needs again."""

    a: Tensor  # float [n, L, N], 0 for the client itself
    beta: Tensor  # float [n, L]
    features: Tensor  # float [N, L, d], or [n, N, L, d]
    mine: Tensor  # float [n, L, d], features of the clients' own models
    common: Tensor  # float [n, L, d], features of the common models

    def effective(self, own: Tensor) -> Tensor:
        """(9): A_ij = (1 - beta_i) a_ij and A_ii = beta_i [n, L, N]; each row sums to 1."""
        weights = (1 - self.beta)[..., None] * self.a
        place = own[:, None, None].expand(-1, weights.shape[1], 1)
        return weights.scatter_(-1, place, self.beta[..., None])


def centred(p: Float[Tensor, "N L d"], pool: Bool[Tensor, " N"]) -> Float[Tensor, "N L d"]:
    """(7): p_j less the mean of those in the pool; exactly 0 if all models are equal, and for those outside."""
    less = p - p[pool][:1]
    return (less - less[pool].mean(0)) * pool[:, None, None]


def features(p: Float[Tensor, "*n L d"], meta: str) -> Float[Tensor, "*n L d"]:
    """(7): projections that were centred, normalised: to mean 0 and variance 1, or to length 1 for aghn."""
    if meta == "aghn":
        return normalize(p, dim=-1, eps=TINY)
    return layer_norm(p, p.shape[-1:], eps=TINY)


def attend(
    psi: Mapping[str, Tensor],
    p: Float[Tensor, "*lists N L d"],
    own: Int64[Tensor, " n"],
    allowed: Shaped[Tensor, "n N"],
    meta: str,
) -> Rows:
    """(8), (9): the weights of n clients over N models.

    Args:
        psi: the clients' meta-models, stacked; see `meta_models.initial`.
        p: the models' projections, centred; [n, N, L, d] if each client has a list of N models of its own to look at.
        own: each client's own place among the models.
        allowed: models that may be mixed, a client's own among them: bool; or with which share, 0 for none, of a mean
            in which none is more alike than another: log share_j is added to s_ij, and to u_i that of its own less that
            of its peers' mean share.
        meta: attention or aghn.
    """
    f, i = features(p, meta), torch.arange(len(own))
    mine = f[own] if f.dim() == 3 else f[i, own]
    peers = allowed.to(f.dtype, copy=True)
    peers[i, own] = 0
    a = (peer_logits(psi, mine, f, meta) + peers.log()[:, None]).softmax(-1)
    a = a.nan_to_num(0.0)  # nobody else is there
    common = features(torch.einsum(f"nlj,{'njld'[4 - f.dim() :]}->nld", a, p), meta)
    there, share = (peers > 0).sum(-1), allowed[i, own].to(f.dtype)
    odds = (share / (peers.sum(-1) / there)).log()  # 0 for shares that are equal
    beta = torch.where(there[:, None] > 0, (gate_logits(psi, mine, common, meta) + odds[:, None]).sigmoid(), 1.0)
    return Rows(a, torch.where(share[:, None] > 0, beta, 0.0), f, mine, common)


def peer_logits(psi: Mapping[str, Tensor], mine: Tensor, f: Tensor, meta: str) -> Tensor:
    """s_ij of (8) [n, L, N], for the features of `Rows`."""
    s = torch.einsum(f"nld,{'njld'[4 - f.dim() :]}->nlj", _looks(psi, mine, "", meta), f)
    return s + psi["bias"][..., : s.shape[-1]] if "bias" in psi else s


def gate_logits(psi: Mapping[str, Tensor], mine: Tensor, common: Tensor, meta: str) -> Tensor:
    """u_i of (9) [n, L], for the features of `Rows`."""
    if meta == "aghn":
        return psi["gate"]
    return psi["gate"] + (_looks(psi, mine, "2", meta) * (mine - common)).sum(-1)


def gradient(
    psi: Mapping[str, Tensor], rows: Rows, own: Int64[Tensor, " n"], scores: Float[Tensor, "n L N"], meta: str
) -> Params:
    """(10): the gradient of the meta objective with respect to psi, in closed form; f(c_i) counts as constant.

    Args:
        psi: meta-models.
        rows: what `attend` gave for them.
        own: as for `attend`.
        scores: S_ij = <grad L_i(h_i), w_j> for each unit, j = i included.
        meta: attention or aghn.
    """
    a, beta, f, mine = rows.a, rows.beta, rows.features, rows.mine
    mean = (a * scores).sum(-1)
    ds = (1 - beta)[..., None] * a * (scores - mean[..., None])
    t = scores.gather(-1, own[:, None, None].expand(-1, a.shape[1], 1)).squeeze(-1) - mean
    # Where all features are 0 the models are equal, and what is left of S_ij - S_ik is rounding.
    differ = (f != 0).any(-1).any(-2)  # [L], or [n, L]
    ds, du = ds * differ[..., None], beta * (1 - beta) * t * differ
    pull = torch.einsum(f"nlj,{'njld'[4 - f.dim() :]}->nld", ds, f)  # sum_j dJ/ds_ij f_j
    if meta == "aghn":
        found = {"temperature": (pull * mine).sum(-1), "gate": du}
    else:
        found = {**_pairs(psi, "", mine, pull), "gate": du}
        found |= _pairs(psi, "2", mine, du[..., None] * (mine - rows.common))
    return found | ({"bias": ds} if "bias" in psi else {})


def penalised(
    scores: Float[Tensor, "n L N"], weights: Float[Tensor, "n L N"], prior: Float[Tensor, "n L N"], rho: float
) -> Float[Tensor, "n L N"]:
    """S_ij + rho log(A_ij / P_ij), the gradient with rho KL(A_i || P_i) added; 0 is added where one of both is 0."""
    there = (weights > 0) & (prior > 0)
    return scores + rho * torch.where(there, weights.log() - prior.log(), 0.0)


def _looks(psi: Mapping[str, Tensor], mine: Tensor, layer: str, meta: str) -> Tensor:
    """W_K^T W_Q f_i / sqrt(k) [n, L, d], whose product with a feature is a score; q f_i for aghn."""
    if meta == "aghn":
        return psi["temperature"][..., None] * mine
    q = torch.einsum("nlkd,nld->nlk", psi[f"query{layer}"], mine)
    looks: Tensor = torch.einsum("nlkd,nlk->nld", psi[f"key{layer}"], q) / q.shape[-1] ** 0.5
    return looks


def _pairs(psi: Mapping[str, Tensor], layer: str, mine: Tensor, pull: Tensor) -> Params:
    """Gradients of query and key, from that with respect to `_looks`."""
    query, key = psi[f"query{layer}"], psi[f"key{layer}"]
    scale = query.shape[-2] ** -0.5
    q = torch.einsum("nlkd,nld->nlk", query, mine)
    dq = torch.einsum("nlkd,nld->nlk", key, pull)
    return {
        f"query{layer}": dq[..., None] * mine[..., None, :] * scale,
        f"key{layer}": q[..., None] * pull[..., None, :] * scale,
    }


def split(manifest: Manifest, _settings: object) -> Split:
    """The running statistics stay with the client."""
    return split_tensors(manifest, manifest.buffers)


SEARCH: Space = {"amn.learning-rate": Range(0.001, 0.1, start=0.01, log=True)}
METHOD = Method("strategies.amn:AMNStrategy", "clients.amn:AMNClient", split, AMNSettings, mixes=True, search=SEARCH,
    composes=True, counts_samples=attrgetter("sample_power"))  # fmt: skip
