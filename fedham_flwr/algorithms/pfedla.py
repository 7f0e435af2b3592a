"""pFedLA and HeurpFedLA: a hypernetwork per client weighs, layer by layer, whom the client learns from.

Source: Ma, Zhang, Guo, Xu, "Layer-wised Model Aggregation for Personalized Federated Learning", CVPR 2022,
arXiv:2205.03993, Algorithms 1 and 2, equations 8 to 12. Shape letters: N clients in the bank, n clients of a cohort,
L layer groups, d embedding, h hidden width. Symbols: w_j^l the last trained layer l of client j, alpha_i^{l,j} its
weight in client i's model, v_i and psi_i the embedding and the hypernetwork of client i, eta_h their learning rate.

Identity card
    shared      every layer group; the clients' models are mixed and never averaged into one
    personal    the mixed model; the running statistics of batch normalisation (or mixed too: `bn_buffers`)
    lives       bank {w_j}, v_i and psi_i on the server; running statistics with the client
    down, up    P scalars each for every client of the cohort and round; HeurpFedLA: down without its k retained layers
    cost        server: 3 n N P multiply-adds; N (P + |psi|) scalars, |psi| > L h N with dense heads; client: E epochs
    server sees its whole model, without running statistics unless `pfedla.bn-buffers="mix"`
    peers see   mixtures of the others' models, which may be mostly one client's
    bound       its largest weight in the other's mixture times C; factorised heads also turn the peers' embeddings

The round
    R1  server: choose S; alpha_i = HN(v_i; psi_i)                              `hypernetworks`, `mixing_weights`
    R2  server: HeurpFedLA: client i retains the k layers of largest alpha_i^{l,i}   `retained`
    R3  server: send wbar_i^l = sum_j alpha_i^{l,j} w_j^l for the others (1)     `bank.Bank.mix`
    R4  client: wt_i <- E epochs of SGD on L_i from wbar_i and its own retained layers   clients/pfedla.py
    R5  client: keep wt_i and its running statistics, send wt_i                  clients/pfedla.py
    R6  server: S_ij = <wbar_i - wt_i, w_j>, then w_i <- wt_i, for all i in S    `bank.Bank.absorb`
    R7  server: v_i, psi_i <- descend by the chain rule through (6)              `logit_gradient`, `hypernetworks`

All of S starts from one snapshot of the bank, so the order of clients changes nothing. The paper prints no sign for
its last step; wbar_i - wt_i is the scaled gradient of L_i at wbar_i, so the surrogate <wbar_i(psi), wbar_i - wt_i> is
descended. A layer is a layer group: weight and bias share one alpha, and a batch normalisation has its own.

What the paper leaves open. The normaliser: softmax, from logits of zero, so that every alpha starts at 1/N; or the
`relu-sum` of public code. The bank starts with one common model. A client that comes late is mixed into no other
client's model, its own included, until it has trained once. `top_k_peers` keeps the k largest weights of a client and
layer, renormalised, and gives the rest no gradient; equal weights: its own first, then in an order drawn each round.

Not of the paper: factorised heads, whose size does not grow with N. They have r + 1 outputs for each layer, a_il in R^r
and b_il, and client j as a peer has one embedding p_jl in R^r for all hypernetworks: s_ilj = <a_il, p_jl>, and s_ili =
b_il. `head="auto"` takes them in a run that begins with more than DENSE_CLIENTS clients. See docs/methods/pfedla.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from annotated_types import Ge, Gt, Lt
from jaxtyping import Bool, Float, Int64
from torch import Tensor
from torch.nn.functional import one_hot, relu

from fedham_flwr.core.errors import UserError
from fedham_flwr.core.methods import Method, Split, never, split_tensors
from fedham_flwr.core.parameters import Manifest
from fedham_flwr.core.search_space import VALIDATED, Range, Space

Normaliser = Literal["softmax", "relu-sum"]
DENSE_CLIENTS = 256
"""With more clients at the start of a run, `head="auto"` is factorised: 100 MB of dense heads for four layers."""


@dataclass(frozen=True)
class PFedLASettings:
    """Settings under `pfedla.`.

    Attributes:
        retained_layers: k, the layers of largest self weight that a client keeps as its own; 0 is pFedLA, more is
            HeurpFedLA, all of them local training.
        top_k_peers: weights that are kept for each client and layer; 0 for all.
        normaliser: softmax, or relu-sum as in public code.
        hypernetwork_learning_rate: eta_h, >= 0; with 0 the weights stay equal.
        hypernetwork_momentum: of the hypernetworks' gradient descent, in [0, 1).
        embedding_dim: d.
        hidden_dim: h.
        hidden_layers: of a hypernetwork, each with a ReLU.
        head: dense, the paper's; factorised; or auto, by the number of clients at the start.
        head_rank: r, of a factorised head.
        self_bias: b >= 0, added to a client's own logits at the start, so that alpha_ii = e^b / (e^b + N - 1).
        bn_buffers: running statistics stay with the client (local), or are mixed with their layer's weights (mix).
    """

    retained_layers: Annotated[int, Ge(0)] = 0
    top_k_peers: Annotated[int, Ge(0)] = 0
    normaliser: Normaliser = "softmax"
    hypernetwork_learning_rate: Annotated[float, Ge(0)] = 6.0
    hypernetwork_momentum: Annotated[float, Ge(0), Lt(1)] = 0.0
    embedding_dim: Annotated[int, Gt(0)] = 100
    hidden_dim: Annotated[int, Gt(0)] = 100
    hidden_layers: Annotated[int, Ge(0)] = 3
    head: Literal["auto", "dense", "factorised"] = "auto"
    head_rank: Annotated[int, Gt(0)] = 8
    self_bias: Annotated[float, Ge(0)] = 0.0
    bn_buffers: Literal["local", "mix"] = "local"


def check_retained(count: int, groups: Sequence[str]) -> None:
    """Refuse more retained layers than there are.

    Raises:
        UserError: the model has fewer layer groups.
    """
    if count > len(groups):
        raise UserError(
            f"pfedla.retained-layers={count} is more than the model's {len(groups)} layer groups: {', '.join(groups)}"
        )


def mixing_weights(
    s: Float[Tensor, "n L N"], allowed: Bool[Tensor, "n L N"], own: Int64[Tensor, " n"], normaliser: Normaliser
) -> Float[Tensor, "n L N"]:
    """R1: alpha, whose rows are not negative and sum to 1; 0 where a peer is not allowed.

    Args:
        s: logits.
        allowed: peers that may be mixed; with softmax at least one in each row.
        own: each client's own place among the peers.
        normaliser: softmax; or relu-sum, relu(s) / sum relu(s), and the client itself alone where the sum is 0.
    """
    if normaliser == "softmax":
        return s.masked_fill(~allowed, -torch.inf).softmax(-1)
    positive = relu(s) * allowed
    total = positive.sum(-1, keepdim=True)
    alone = one_hot(own, s.shape[-1]).to(s)[:, None].expand_as(s)
    return torch.where(total > 0, positive / total.clamp_min(torch.finfo(s.dtype).tiny), alone)


def retained(alpha: Float[Tensor, "n L N"], own: Int64[Tensor, " n"], k: int) -> Bool[Tensor, "n L"]:
    """R2, equation 12: the k layers of largest self weight for each client; of equal ones the first."""
    selves = alpha.gather(-1, own[:, None, None].expand(-1, alpha.shape[1], 1)).squeeze(-1)  # [n, L]
    best = selves.argsort(dim=-1, descending=True, stable=True)[:, :k]
    return torch.zeros_like(selves, dtype=torch.bool).scatter_(-1, best, True)


def logit_gradient(
    alpha: Float[Tensor, "n L N"],
    s: Float[Tensor, "n L N"],
    scores: Float[Tensor, "n L N"],
    mixed: Bool[Tensor, "n L N"],
    normaliser: Normaliser,
) -> Float[Tensor, "n L N"]:
    """R7, equation 6: the surrogate's gradient by logits. Rows sum to 0 with softmax; times s_ij with relu-sum.

    Args:
        alpha: weights that the clients' start was mixed with.
        s: logits.
        scores: S_ij = <wbar_i - wt_i, w_j> for each layer.
        mixed: the peers that had a part; none in a layer that was retained, whose gradient is 0.
        normaliser: as in `mixing_weights`.
    """
    centred = scores - (alpha * scores).sum(-1, keepdim=True)
    if normaliser == "softmax":
        return torch.where(mixed, alpha * centred, 0.0)
    active = mixed & (s > 0)
    total = (s * active).sum(-1, keepdim=True)
    return torch.where(active, centred / total.clamp_min(torch.finfo(s.dtype).tiny), 0.0)


def split(manifest: Manifest, settings: PFedLASettings) -> Split:
    """The running statistics stay with the client, unless they are mixed."""
    return split_tensors(manifest, manifest.buffers if settings.bn_buffers == "local" else ())


SEARCH: Space = {"pfedla.hypernetwork-learning-rate": Range(0.01, 100.0, start=6.0, log=True, source=VALIDATED)}
METHOD = Method(
    "strategies.pfedla:PFedLAStrategy", "clients.pfedla:PFedLAClient", split, PFedLASettings,
    mixes=True, composes=True, counts_samples=never, search=SEARCH)  # fmt: skip
