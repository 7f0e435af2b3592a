"""APFL: each client uses a mixture of the common model and one of its own, and learns how much of each.

Source: Deng, Kamani, Mahdavi, "Adaptive Personalized Federated Learning", 2020, arXiv:2003.13461, Algorithm 1.
Symbols: w the common model, w_k client k's copy, v_k its own model, alpha_k in [0, 1] how much of its own it uses,
u_k = alpha_k v_k + (1 - alpha_k) w_k the mixture, L_k its loss, eta the learning rate, m_k its training samples.

Identity card
    shared      every layer group, of w
    personal    v_k, a whole model with running statistics, and alpha_k; the personal model is the mixture with w
    lives       w on the server, v_k and alpha_k with the client
    down, up    P scalars each for every client of the cohort and round
    cost        client: twice FedAvg's
    server sees its copy of the common model after training; never its own model or alpha
    peers see   the mean of the copies
    bound       p C for the common model, and so (1 - alpha) p C for the mixture of a client that keeps alpha

The round
    R1  server: choose S, send w to each of its clients                         strategies/apfl.py
    R2  client: w_k <- w, then in each step w_k <- w_k - eta grad L_k(w_k)       `Mixing`
    R3  client: and on the same batch v_k <- v_k - eta alpha_k grad L_k(u_k)     `Mixing`
    R4  client: and alpha_k <- clip(alpha_k - eta <v_k - w_k, grad L_k(u_k)>, 0, 1)     `alpha_step`
    R5  client: keep v_k and alpha_k, send w_k and m_k; use the mixture          clients/apfl.py
    R6  server: w <- sum_{k in S} m_k w_k / sum_{k in S} m_k                    `fedavg.aggregate`

All three take their gradients where they were before the step. eta is `learning-rate`, with its schedule. The steps are
the method's own: momentum has no effect, and other optimisers and `max-grad-norm` are refused. Weight decay is part of
L_k. A v_k starts at the first w that its client is sent. With alpha = 0 for good a client is FedAvg's, with 1 it trains
alone, both by plain descent; from there an alpha that adapts is free to leave, but with alpha = 0 v_k stands still.

R4 is equation 10 (as issue 15 of the authors' repository quotes it), with the index of local steps, of which
`apfl.adapt="step"` takes every one, `"round"` only the first of each round. The authors' code differs from it: it takes
one step of alpha in a round, after w_k and v_k have taken their first; it mixes the outputs of both models in place of
their parameters; the slope is <v_k - w_k, alpha g_v + (1 - alpha) g_w> with g_v and g_w the gradients of that mixture's
loss with respect to v_k and w_k; and 0.02 alpha is added to it. None of this is here. Running statistics see the
batches of both models: the server has the mean of them, and a client goes on with its own. Deviation from the paper:
the mean is weighted by samples, as in FedAvg, where the paper counts every client once.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from annotated_types import Ge, Le
from jaxtyping import Float
from torch import Tensor

from fedham_flwr.algorithms.fedavg import split
from fedham_flwr.core.methods import Method
from fedham_flwr.core.parameters import Params
from fedham_flwr.core.search_space import Choice, Range
from fedham_flwr.training.step_rules import Slopes, StepRule, descended, wide

ALPHA, OPEN = "mixing/alpha", "mixing/open"
"""Names, beside those of v_k's tensors, of alpha_k and of whether it takes the next step: 1 or 0."""


@dataclass(frozen=True)
class APFLSettings:
    """Settings under `apfl.`.

    Attributes:
        alpha: at the start, [0, 1]; the paper tries 0.25, 0.5 and 0.75 fixed, and 0.01 where it adapts.
        adapt: when alpha takes a step: with every local step, with the first of a round, or never.
    """

    alpha: Annotated[float, Ge(0), Le(1)] = 0.5
    adapt: Literal["step", "round", "no"] = "step"


def mixture(own: Tensor, common: Tensor, alpha: Tensor) -> Tensor:
    """alpha_k v_k + (1 - alpha_k) w_k; at both ends one of the two, bit for bit.

    Args:
        own: v_k, of any shape.
        common: w_k, as own.
        alpha: alpha_k, to be multiplied with them.
    """
    return alpha * own + (1 - alpha) * common


def alpha_step(
    alpha: Float[Tensor, " m"], own: Params, common: Params, slopes: Params, rate: float
) -> Float[Tensor, " m"]:
    """R4: alpha_k after a step down its derivative of L_k(u_k), clipped to [0, 1].

    Args:
        alpha: of each client.
        own: v_k, [m, ...].
        common: w_k, as own.
        slopes: grad L_k(u_k), as own.
        rate: eta.
    """
    products = [((own[name] - common[name]) * slope).flatten(1).sum(1) for name, slope in slopes.items()]
    return (alpha - rate * torch.stack(products).sum(0)).clamp(0, 1)


def mixed(own: Mapping[str, Tensor], common: Mapping[str, Tensor], alpha: Tensor, names: Collection[str]) -> Params:
    """The model that a client uses: the mixture of parameters, and its own running statistics.

    Args:
        own: v_k, all tensors.
        common: w or w_k, as own.
        alpha: alpha_k, [].
        names: of the parameters.
    """
    return {name: mixture(v, common[name], alpha) if name in names else v for name, v in own.items()}


class Mixing(StepRule):
    """R2 to R4 of a batch.

    Args:
        own: v_k, by the parameters' names.
        alpha: alpha_k, [].
        adapt: as in the settings.
        rate: eta.
    """

    def __init__(self, own: Mapping[str, Tensor], alpha: Tensor, adapt: str, rate: float) -> None:
        super().__init__({**own, ALPHA: alpha, OPEN: torch.full_like(alpha, float(adapt != "no"))})
        self._once, self._rate = adapt == "round", rate

    def step(self, params: Params, own: Params, slopes: Slopes) -> Params:
        """The copy of the common model after a batch; v_k and alpha_k are changed in place."""
        alpha, rate = own[ALPHA].clone(), self._rate
        private = {name: own[name] for name in params}
        between = {name: mixture(private[name], w, wide(alpha, w)) for name, w in params.items()}
        there, here = slopes(between, 0), slopes(params, 0)
        moved = alpha_step(alpha, private, params, there, rate)
        own[ALPHA].copy_(torch.where(own[OPEN] > 0, moved.to(alpha.dtype), alpha))
        if self._once:
            own[OPEN].zero_()
        for name, v in private.items():
            v.sub_(rate * wide(alpha, v) * there[name])
        return descended(params, here, rate)


METHOD = Method(
    "strategies.apfl:APFLStrategy",
    "clients.apfl:APFLClient",
    split,
    APFLSettings,
    averages=True,
    own_steps=True,
    search={
        "apfl.alpha": Range(0.01, 0.99, start=0.5, source="one of those that the paper tries"),
        "apfl.adapt": Choice(("step", "round", "no"), "step", source="the paper"),
    },
)
