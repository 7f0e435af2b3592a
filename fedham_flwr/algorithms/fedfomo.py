"""FedFomo: each client gets a few models, and mixes those that do better on its validation samples than its own did.

Source: Zhang, Sapra, Fidler, Yeung, Alvarez, "Personalized Federated Learning with First Order Model Optimization",
ICLR 2021, arXiv:2012.08565, and the authors' code. Shape letters: N clients, M models that a client weighs, P scalars.
Symbols: w_j the last trained model of client j, v_i the model that client i's last training began with, L_i its loss
on its validation split, omega_ij the weight of w_j for it, A_ij their sum over the rounds, epsilon_t the share of
models that is drawn in round t.

Identity card
    shared      every layer group; the clients' models are sent to a few others each
    personal    the mixture of the models that it got; v_i
    lives       {w_i} and A on the server, v_i with the client
    down, up    M P, P scalars for every client of the cohort and round, and as for 2 M numbers more up
    cost        server: N P scalars, and N log N operations to choose for a client; no model is mixed there;
                client: M + 1 passes over the validation split, 3 M P operations, and E epochs
    server sees its whole model after each training, and how much better or worse on its validation split others' were
    peers see   the whole models of others, unmixed, M - 1 in each round
    bound       its model moves by C; what the other starts from moves by that model's weight times C, and as much as
                its weights turn, since they depend on how that model does there; it stays between the models it got

The round
    R1  server: choose S; for each of its clients M - 1 peers by A_i, some of them drawn     strategies/fedfomo.py
    R2  server: send client i its own w_i, and the peers' models                   strategies/fedfomo.py
    R3  client: omega_ij = (L_i(v_i) - L_i(w_j)) / |w_j - v_i|, for its own w_i too    `weight`
    R4  client: v_i <- v_i + sum_j a_ij (w_j - v_i) with a_ij = max(omega_ij, 0), divided by their sum     `mixed`
    R5  client: w_i <- E epochs of SGD on L_i's training samples from v_i; keep v_i, send w_i and omega_i
                                                                                   clients/fedfomo.py
    R6  server: put w_i in place of the old one; A_ij <- A_ij + omega_ij           mixing/affinity.py

If no omega is above 0, v_i stays: the client trains once more from where its last training began, and what that came to
is forgotten by itself. epsilon_t = epsilon - (t - 1) decay, and each of M - 1 places is drawn with that probability. A
is kept of the pairs that have met; nothing has a size of N times N.

As in the authors' commands v_i is what the losses are compared with, and a client's own w_i is one of the M. Since each
a_ij is divided by the sum, R4 is a mean of the models. Lengths are over the parameters; running statistics are mixed
along. A model that is v_i itself has weight 0. A client without validation samples goes on from its own w_i; a run
without any is refused. Deviations: all clients' last models can be chosen, absent ones' too. The authors' code measures
|w_j - v_i| as the sum of absolute differences, and adds to A_ij omega_ij divided by |sum_j omega_ij|.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated

from annotated_types import Ge, Gt, Le
from torch import Tensor

from fedham_flwr.algorithms.fedavg import split
from fedham_flwr.core.methods import Method, never
from fedham_flwr.core.parameters import Params
from fedham_flwr.core.search_space import Range, Space

MOST = 1e12
"""The largest omega, of a model that is nearly v_i."""


@dataclass(frozen=True)
class FedFomoSettings:
    """Settings under `fedfomo.`; the defaults are the authors'.

    Attributes:
        models: M >= 1, models that a client weighs in a round, its own among them.
        epsilon: share of the others that is drawn in the first round, [0, 1].
        epsilon_decay: what is taken from epsilon in each round, >= 0, until nothing is drawn.
    """

    models: Annotated[int, Gt(0)] = 5
    epsilon: Annotated[float, Ge(0), Le(1)] = 0.3
    epsilon_decay: Annotated[float, Ge(0)] = 0.05


def distance(one: Mapping[str, Tensor], other: Mapping[str, Tensor], names: Sequence[str]) -> float:
    """|w_j - v_i| over the tensors named, in float64."""
    return math.sqrt(math.fsum(float((one[n].double() - other[n].double()).square().sum()) for n in names))


def weight(before: float, loss: float, far: float) -> float:
    """R3: omega_ij, 0 for a model that is v_i, and at most MOST of either sign.

    Args:
        before: L_i(v_i).
        loss: L_i(w_j), which may be infinite.
        far: |w_j - v_i|.
    """
    if far == 0:
        return 0.0
    found = (before - loss) / far
    return 0.0 if math.isnan(found) else max(-MOST, min(MOST, found))


def shares(omega: Sequence[float]) -> list[float]:
    """R4: a_ij, which sum to 1; all 0 if no omega is above 0."""
    positive = [max(each, 0.0) for each in omega]
    total = math.fsum(positive)
    return [each / total if total else 0.0 for each in positive]


def mixed(before: Params, models: Sequence[Mapping[str, Tensor]], a: Sequence[float]) -> Params:
    """R4: v_i + sum_j a_ij (w_j - v_i), in float64; v_i itself, to the bit, if all a_ij are 0.

    Args:
        before: v_i.
        models: w_j.
        a: their shares.
    """
    if not any(a):
        return before
    found: Params = {}
    for name, tensor in before.items():
        total = tensor.double() * (1 - math.fsum(a))
        for model, share in zip(models, a, strict=True):
            total = total.add_(model[name].double(), alpha=share)
        found[name] = total.to(tensor.dtype)
    return found


def explored(settings: FedFomoSettings, round_number: int) -> float:
    """epsilon_t of a round t, from 1."""
    return max(0.0, settings.epsilon - (round_number - 1) * settings.epsilon_decay)


AUTHORS = "the authors' code"
SEARCH: Space = {
    "fedfomo.models": Range(2, 10, start=5, whole=True, source=AUTHORS),
    "fedfomo.epsilon": Range(0.0, 0.9, start=0.3, source=AUTHORS),
}
METHOD = Method(
    "strategies.fedfomo:FedFomoStrategy",
    "clients.fedfomo:FedFomoClient",
    split,
    FedFomoSettings,
    mixes=True,
    composes=True,
    extras="how much better or worse on its validation split others' were",
    counts_samples=never,
    search=SEARCH,
)
