"""FedHAM, HAM-style: a meta-model on each client attends over the clients' models and mixes a hybrid for its client.

Faithful to the abstract of Gao, Wang, Liu, Zhang, Ma, "Configure Your Federation", ACM TIST 2023, 10.1145/3591362, and
not more: its full text is not public, and all that the abstract leaves open is a reading (below). Shape letters: N
clients in the pool, n of a cohort, L units, d feature, k key, P scalars of a unit. w_j: last model of client j,
psi_i: meta-model of client i, R: signed projection, eta_m: meta learning rate. A unit is a layer group, or the model.

Identity card
    shared      every layer group; the clients' models are mixed and never averaged into one
    personal    psi_i = (W_Q, W_K, W_Q2, W_K2, b0) and its optimiser's state; running statistics; with `peers` also w_i
    lives       psi_i with client i, which never sends it; the pool {w_j} on the server
    down, up    `peers`: M P down; P and a row of N L weights up (N^2 P in all if M = N - 1, and peers see one another)
                `mediated`: P + N L d + N L down; P + N L up
    cost        client: E epochs; `peers`: T_m gradients of the network and 2 T_m M P multiply-adds besides
                server: `mediated`: 3 n N P multiply-adds, n P additions; N P scalars of memory

The round
    R1  server: choose S; send i its peers' w_j (`peers`), or p_j = R w_j and its last S_ij (`mediated`)   `project`
    R2  client: psi_i <- descend by (10), base frozen; `peers`: T_m steps with S_ij = <grad L_i(h_i), w_j>; `mediated`:
        one step with the S_ij that came                                                    `gradient`, meta_models.py
    R3  client: f_j = LN(p_j - pref) (7); rows a_ij, beta_i (8), (9); `mediated`: send them     `features`, `attend`
    R4  server: `mediated`: send h_i = beta_i w_i + (1 - beta_i) sum_j a_ij w_j                       `bank.Bank.mix`
    R5  client: with `peers`, make h_i itself; wt_i <- E epochs of SGD, meta frozen, from h_i (B1) or through it (B2)
    R6  client: keep psi_i, send wt_i; with `peers` also its row                                    clients/fedham.py
    R7  server: `mediated`: S_ij = <h_i - wt_i, w_j>; then w_i <- wt_i                             `bank.Bank.absorb`

Open in the paper, and read as: features are R(w_j - pref), R one random sign per scalar, folded into d sums; pref is
the pool's mean, for models grown from one start are else collinear; values are the models themselves; layer one leaves
the client out; psi is never averaged; meta data are held out of training. All else is a setting. `mediated` replaces
grad L_i(h_i) by h_i - wt_i, its multiple for one step of SGD. B2 descends w_i with h_i = beta_i w_i + (1 - beta_i) c_i.
`meta="aghn"` has two scalars per unit, temperature and gate, and unit-norm features: the weights of FedAGHN.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Literal, NamedTuple

import torch
from annotated_types import Ge, Gt, Le, Lt
from jaxtyping import Bool, Float, Int64
from torch import Tensor
from torch.nn.functional import layer_norm, normalize

from fedham_flwr.parameters import Params

TINY = 1e-12
"""Added to the variance of features: far below that of models that differ, so that equal ones have features of 0."""
ROWS = 512
"""So many rows of d scalars are folded at once by `project`: a piece stays in the processor's cache."""


@dataclass(frozen=True)
class AttentionSettings:
    """Settings of the meta-models, under `fedham.` and `amn.`.

    Attributes:
        unit: what has a row of weights of its own: each layer group, or the whole model.
        meta: attention, or aghn for FedAGHN's temperature and gate.
        feature_dim: d.
        key_dim: k, of queries and keys.
        reference: pref, the mean of the pool or the common start.
        peer_bias: whether each peer has a free bias in layer one.
        uniform_penalty: rho >= 0, of the divergence of a row from equal weights.
        optimizer: adam; normalised, for steps of length eta_m per unit; or sgd, which depends on the loss's scale.
        learning_rate: eta_m >= 0; with 0 the weights stay equal.
    """

    unit: Literal["layer", "model"] = "layer"
    meta: Literal["attention", "aghn"] = "attention"
    feature_dim: Annotated[int, Gt(1)] = 64
    key_dim: Annotated[int, Gt(0)] = 32
    reference: Literal["mean", "start"] = "mean"
    peer_bias: bool = False
    uniform_penalty: Annotated[float, Ge(0)] = 0.0
    optimizer: Literal["adam", "normalised", "sgd"] = "adam"
    learning_rate: Annotated[float, Ge(0)] = 0.01


@dataclass(frozen=True)
class FedHAMSettings(AttentionSettings):
    """Settings under `fedham.`.

    Attributes:
        transport: peers, mediated, or auto: peers up to 20 clients (and for B2), else mediated.
        peers: M, the models that a client gets with `peers`; 0 for all.
        exploration: share of those M that is drawn, in [0, 1]; the others had its largest weights last.
        meta_steps: T_m, with `peers`.
        meta_batch_size: of a meta step's loss.
        meta_data: with `peers`, samples for the meta steps: the same part of the training samples held out of all
            training (held-out), another part of them held out in each round (fresh), or all, which training uses too
            (shared).
        meta_share: of the training samples that is held out, (0, 1).
        base_objective: hybrid is B1, own is B2, which needs `peers`.
    """

    transport: Literal["auto", "peers", "mediated"] = "auto"
    peers: Annotated[int, Ge(0)] = 0
    exploration: Annotated[float, Ge(0), Le(1)] = 0.2
    meta_steps: Annotated[int, Ge(0)] = 5
    meta_batch_size: Annotated[int, Gt(0)] = 64
    meta_data: Literal["held-out", "fresh", "shared"] = "held-out"
    meta_share: Annotated[float, Gt(0), Lt(1)] = 0.2
    base_objective: Literal["hybrid", "own"] = "hybrid"


class Rows(NamedTuple):
    """What `attend` gives: weights over peers, gates, and what the gradient needs again."""

    a: Tensor  # float [n, L, N], 0 for the client itself
    beta: Tensor  # float [n, L]
    features: Tensor  # float [N, L, d]
    common: Tensor  # float [n, L, d], features of the common models

    def effective(self, own: Tensor) -> Tensor:
        """(9): A_ij = (1 - beta_i) a_ij and A_ii = beta_i [n, L, N]; each row sums to 1."""
        weights = (1 - self.beta)[..., None] * self.a
        place = own[:, None, None].expand(-1, weights.shape[1], 1)
        return weights.scatter_(-1, place, self.beta[..., None])


def project(models: Float[Tensor, "N P"], signs: Float[Tensor, " P"], d: int) -> Float[Tensor, "N d"]:
    """(7): R w_j. Row p mod d of column p of R holds the sign of p, so that E <R x, R y> = <x, y>; float64."""
    total = models.new_zeros(len(models), d, dtype=torch.float64)
    for at in range(0, models.shape[1], ROWS * d):
        piece = models[:, at : at + ROWS * d] * signs[at : at + ROWS * d]
        whole = piece.shape[1] // d * d
        total += piece[:, :whole].reshape(len(models), -1, d).sum(1)
        total[:, : piece.shape[1] - whole] += piece[:, whole:]
    return total


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
    p: Float[Tensor, "N L d"],
    own: Int64[Tensor, " n"],
    allowed: Bool[Tensor, "n N"],
    meta: str,
) -> Rows:
    """(8), (9): the weights of n clients over N models.

    Args:
        psi: the clients' meta-models, stacked; see `initial`.
        p: the models' projections, centred.
        own: each client's own place among the models.
        allowed: models that may be mixed, a client's own among them.
        meta: attention or aghn.
    """
    f, i = features(p, meta), torch.arange(len(own))
    peers = allowed.clone()
    peers[i, own] = False
    s = torch.einsum("nld,jld->nlj", _looks(psi, f[own], "", meta), f)
    s = s + psi["bias"][..., : s.shape[-1]] if "bias" in psi else s
    a = s.masked_fill(~peers[:, None], -torch.inf).softmax(-1).nan_to_num(0.0)  # NaN: nobody else is there
    common = features(torch.einsum("nlj,jld->nld", a, p), meta)
    u = psi["gate"]
    if meta == "attention":
        u = u + (_looks(psi, f[own], "2", meta) * (f[own] - common)).sum(-1)
    beta = torch.where(peers.any(-1)[:, None], u.sigmoid(), 1.0)
    return Rows(a, torch.where(allowed[i, own][:, None], beta, 0.0), f, common)


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
    a, beta, f, mine = rows.a, rows.beta, rows.features, rows.features[own]
    mean = (a * scores).sum(-1)
    ds = (1 - beta)[..., None] * a * (scores - mean[..., None])
    t = scores.gather(-1, own[:, None, None].expand(-1, a.shape[1], 1)).squeeze(-1) - mean
    # Where all features are 0 the models are equal, and what is left of S_ij - S_ik is rounding.
    differ = (f != 0).any(-1).any(0)
    ds, du = ds * differ[:, None], beta * (1 - beta) * t * differ
    pull = torch.einsum("nlj,jld->nld", ds, f)  # sum_j dJ/ds_ij f_j
    if meta == "aghn":
        found = {"temperature": (pull * mine).sum(-1), "gate": du}
    else:
        near = _pairs(psi, "", mine, pull)
        far = _pairs(psi, "2", mine, du[..., None] * (mine - rows.common))
        found = {**near, **far, "gate": du}
    return found | ({"bias": ds} if "bias" in psi else {})


def penalised(scores: Float[Tensor, "n L N"], weights: Float[Tensor, "n L N"], rho: float) -> Float[Tensor, "n L N"]:
    """S_ij + rho log(N_i A_ij), the gradient with rho KL(A_i || uniform) added; N_i of the weights are not 0."""
    there = weights > 0
    return scores + rho * torch.where(there, (weights * there.sum(-1, keepdim=True)).log(), 0.0)


def initial(how: AttentionSettings, units: int, peers: int, generator: torch.Generator) -> Params:
    """A meta-model at the start, with which h_i is the mean of all models; for aghn as in its code, q = 1 and p = 0.05.

    Args:
        how: settings.
        units: L.
        peers: N, itself included.
        generator: for the queries, whose components are of order one. Keys and biases start at 0.

    Returns:
        gate [L], the logit of 1/N; query, key, query2, key2 [L, k, d]; for aghn gate [L], which is log p, and
        temperature [L], which is q; bias [L, N] if there is one.
    """
    if how.meta == "aghn":
        psi = {"gate": torch.full((units,), 0.05).log(), "temperature": torch.ones(units)}
    else:
        psi = {"gate": torch.full((units,), 1 / max(peers, 2)).logit()}
        shape = (units, how.key_dim, how.feature_dim)
        for layer in ("", "2"):
            psi[f"query{layer}"] = torch.randn(shape, generator=generator) / how.feature_dim**0.5
            psi[f"key{layer}"] = torch.zeros(shape)
    return psi | ({"bias": torch.zeros(units, peers)} if how.peer_bias else {})


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
