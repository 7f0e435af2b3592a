"""FedHAM, HAM-style: a meta-model on each client attends over the clients' models and mixes a hybrid for its client.

Faithful to the abstract of Gao, Wang, Liu, Zhang, Ma, "Configure Your Federation", ACM TIST 2023, 10.1145/3591362, and
not more: its full text is not public, and all that the abstract leaves open is a reading (below). The mathematics and
the symbols are those of algorithms/amn.py; M: models that a client is sent or told of, T_m: meta steps of a round.

Identity card
    shared      every layer group; the clients' models are mixed and never averaged into one
    personal    psi_i = (W_Q, W_K, W_Q2, W_K2, b0) and its optimiser's state; running statistics; with `peers` also w_i
    lives       psi_i with client i, which never sends it; the pool {w_j} on the server
    down, up    `peers`: few (M + 1) P + 2 N L d down, all M P + N L d; P and rows of N L up; N^2 P in all if M = N - 1
                `mediated`: P + M L d + M L down; P + M L up; M is N, or K + 1 with `candidates`
    cost        client: E epochs; `peers`: T_m gradients of the network and 2 T_m M P multiply-adds more
                server: `mediated`: 3 n N P multiply-adds, n P additions; few `peers`: n N P; N P scalars of memory
    server sees its whole model without running statistics, and its row of mixing weights
    peers see   `peers`: **the others' whole models**, under numbers, and a mixture; `mediated`: mixtures, random
                projections of each; how long ago each trained, with `sample-power` how many samples it has
    bound       as `amn`

The round
    R1  server: choose S; send i p_j = dir U_j - pref and its peers' w_j (`peers`) or last S_ij (`mediated`) `project`
        with few `peers` all p_j come first, and i answers its row, which picks the w_j and mixes one model of the rest
    R2  client: psi_i <- descend by (10), base frozen; `peers`: T_m steps with S_ij = <grad L_i(h_i), w_j>; `mediated`:
        one step with the S_ij that came                                                    `gradient`, meta_models.py
    R3  client: f_j = LN(p_j) (7); rows a_ij, beta_i (8), (9); `mediated`: send them     `features`, `attend`
    R4  server: `mediated`: send h_i = beta_i w_i + (1 - beta_i) sum_j a_ij w_j                       `bank.Bank.mix`
    R5  client: with `peers`, make h_i itself; wt_i <- E epochs of SGD, meta frozen, from h_i (B1) or through it (B2)
    R6  client: keep psi_i, send wt_i; with `peers` also its row                                    clients/fedham.py
    R7  server: `mediated`: S_ij = <h_i - wt_i, w_j>; U_i <- mu U_i + dir R (wt_i - h_i); w_i <- wt_i

`mediated` takes (h_i - wt_i) / (eta K) for grad L_i(h_i), which it is for one step of SGD; see algorithms/amn.py. B2
descends w_i by the loss at beta_i w_i + (1 - beta_i) c_i, by plain SGD too. `meta="aghn"` has two scalars per unit,
temperature and gate, and unit-norm features: FedAGHN's formula, of updates of all rounds, where that has the last ones.

Open in the paper, and how it is read here
    features        dir U_j - pref: U_j the sum over rounds of R (wt_j - h_j), less the mean of three or more, of length
                    1; w_j itself tells more of who was mixed into it. R one random sign per scalar, folded into d sums,
                    pref the pool's mean. Sketched or raw, deltas or weights: not public; `reference` has both
    values          the models themselves, so that a hybrid lies in their convex hull
    layer one       leaves the client itself out, which layer two weighs against the rest
    granularity     a row for each layer group, made from its own projections; else `unit`, `features_of`
    meta data       the training data, with a penalty on rows far from a new meta-model's, without which beta drifts to
                    1, since a client's own model has fitted them; or a part held out, which training then lacks
    step sizes      Adam: S_ij has any scale. No step moves a logit by more than 0.3, or leads a gate's beyond 5 or -5
    averaging psi   never; data sets, clients, rounds and tables of the papers: not public, so nothing is reproduced
"""

from __future__ import annotations

from dataclasses import dataclass
from operator import attrgetter
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Le, Lt

from fedham_flwr.algorithms.amn import AttentionSettings, split
from fedham_flwr.core.methods import Method
from fedham_flwr.core.search_space import Range, Space


@dataclass(frozen=True)
class FedHAMSettings(AttentionSettings):
    """Settings under `fedham.`; see `AttentionSettings` for the first of them.

    Attributes:
        prior_penalty: rho, with `peers`. `mediated` takes none: it would outweigh gradients that a local phase has
            made small.
        transport: peers, mediated, or auto: peers up to 20 clients (and for B2), else mediated.
        peers: M, the models that a client gets with `peers`; 0 for all.
        mixed_rest: whether the models that are not sent come as one, with few `peers`: mixed by the row that chose.
        exploration: share of those M that is drawn, in [0, 1]; the others have its largest weights.
        meta_steps: T_m, with `peers`.
        meta_batch_size: of a meta step's loss.
        meta_data: with `peers`, samples for the meta steps: the same part of the training samples held out of all
            training (held-out), another part of them held out in each round (fresh), or all, which training uses too
            (shared).
        meta_share: of the training samples that is held out, (0, 1).
        base_objective: hybrid is B1, own is B2, which needs `peers`.
    """

    prior_penalty: Annotated[float, Ge(0)] = 0.05
    transport: Literal["auto", "peers", "mediated"] = "auto"
    peers: Annotated[int, Ge(0)] = 3
    mixed_rest: bool = True
    exploration: Annotated[float, Ge(0), Le(1)] = 0.0
    meta_steps: Annotated[int, Ge(0)] = 5
    meta_batch_size: Annotated[int, Gt(0)] = 64
    meta_data: Literal["held-out", "fresh", "shared"] = "shared"
    meta_share: Annotated[float, Gt(0), Lt(1)] = 0.2
    base_objective: Literal["hybrid", "own"] = "hybrid"


SEARCH: Space = {
    "fedham.learning-rate": Range(0.001, 0.1, start=0.01, log=True),
    "fedham.prior-penalty": Range(0.005, 0.5, start=0.05, log=True, source="ours, by validation"),
    "fedham.meta-steps": Range(1, 10, start=5, whole=True),
}
METHOD = Method(
    "strategies.fedham:FedHAMStrategy", "clients.fedham:FedHAMClient", split, FedHAMSettings, mixes=True, search=SEARCH,
    composes=True, counts_samples=attrgetter("sample_power"), extras="its row of mixing weights",
)  # fmt: skip
