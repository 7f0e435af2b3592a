"""Per-FedAvg: a common model that is good after one step of descent on a client's own data, by meta-learning.

Source: Fallah, Mokhtari, Ozdaglar, "Personalized Federated Learning with Theoretical Guarantees: A Model-Agnostic
Meta-Learning Approach", NeurIPS 2020, arXiv:2002.07948, Algorithm 1. Symbols: w the common model, w_k client k's copy,
L_k its loss, H_k the Hessian of L_k, alpha the rate of the inner step, beta that of the outer, D, D', D'' independent
batches, delta the step of the finite difference, m_k its training samples.

Identity card
    shared      every layer group, of w
    personal    nothing; the personal model is w - alpha grad L_k(w), the common one after an inner step
    lives       w on the server
    down, up    P scalars each for every client of the cohort and round
    cost        client: FedAvg's, fo, or a third more, hf, in a half or a third of the steps; `adaptation-steps` more
    server sees its whole model after each training; never its personal model
    peers see   the mean of the models
    bound       p C

The round
    R1  server: choose S, send w to each of its clients                         strategies/perfedavg.py
    R2  client: v = grad L_k(w_k - alpha grad L_k(w_k; D); D')                    `outer_slope`
    R3  client: w_k <- w_k - beta v, fo; w_k <- w_k - beta (v - alpha H_k(w_k) v), hf   `FirstOrder`, `HessianFree`
        with H v ~ (grad L_k(w_k + delta v; D'') - grad L_k(w_k - delta v; D'')) / (2 delta)   `hessian_product`
    R4  client: send w_k and m_k; use w - alpha grad L_k(w)                       clients/perfedavg.py
    R5  server: w <- sum_{k in S} m_k w_k / sum_{k in S} m_k                    `fedavg.aggregate`

beta is `learning-rate`, with its schedule. A step takes two (fo) or three (hf) batches of `batch-size`, which have no
sample in common, so that an epoch has a half or a third of the steps; where a client has too few samples for that, the
gradient of no sample is 0. The steps are the method's own: momentum has no effect, and other optimisers and
`max-grad-norm` are refused. Weight decay is part of L_k. With alpha = 0 both variants are local training by plain
descent on every second or third sample. Both gradients of the finite difference see the same samples and drop the same
values, and hf refuses bf16, whose rounding 1 / (2 delta) would magnify.

Deviation from the paper: the mean is weighted by samples, as in FedAvg, where the paper counts every client once. The
personal model starts from the w that came, and not from the w_k that training makes of it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from annotated_types import Ge, Gt

from fedham_flwr.algorithms.fedavg import split
from fedham_flwr.core.errors import UserError
from fedham_flwr.core.methods import Method
from fedham_flwr.core.parameters import Params
from fedham_flwr.core.search_space import Range
from fedham_flwr.training.step_rules import Slopes, StepRule, descended


@dataclass(frozen=True)
class PerFedAvgSettings:
    """Settings under `perfedavg.`.

    Attributes:
        variant: fo leaves the Hessian out, hf has its product as a difference of two gradients.
        inner_rate: alpha, >= 0; the paper's is 0.01.
        adaptation_steps: of rate alpha that make the personal model; 0 for as many as local training takes.
        delta: of hf, > 0: how far the two gradients are apart, in lengths of v.
    """

    variant: Literal["fo", "hf"] = "fo"
    inner_rate: Annotated[float, Ge(0)] = 0.01
    adaptation_steps: Annotated[int, Ge(0)] = 1
    delta: Annotated[float, Gt(0)] = 0.001


def outer_slope(params: Params, slopes: Slopes, inner_rate: float) -> Params:
    """R2: v, the gradient on the second batch after an inner step on the first.

    Args:
        params: w_k of each client, [m, ...].
        slopes: gradients at parameters, on a part of the step's samples.
        inner_rate: alpha.
    """
    return slopes(descended(params, slopes(params, 0), inner_rate), 1)


def hessian_product(params: Params, direction: Params, slopes: Slopes, delta: float) -> Params:
    """R3: about H_k(w_k) v, exact to order delta^2, on the third batch.

    Args:
        params: w_k of each client, [m, ...].
        direction: v, as params.
        slopes: as of `outer_slope`.
        delta: of the central difference.
    """
    ahead, behind = (slopes(descended(params, direction, shift), 2) for shift in (-delta, delta))
    return {name: (ahead[name] - behind[name]) / (2 * delta) for name in params}


class FirstOrder(StepRule):
    """R2, R3 without the Hessian.

    Args:
        inner_rate: alpha.
        rate: beta.
    """

    parts: ClassVar[int] = 2

    def __init__(self, inner_rate: float, rate: float) -> None:
        super().__init__()
        self._inner, self._rate = inner_rate, rate

    def step(self, params: Params, own: Params, slopes: Slopes) -> Params:
        """A step of beta down v."""
        return descended(params, outer_slope(params, slopes, self._inner), self._rate)


class HessianFree(StepRule):
    """R2, R3 with the Hessian's product as a difference of gradients.

    Args:
        inner_rate: alpha.
        rate: beta.
        delta: of the difference.
    """

    parts: ClassVar[int] = 3
    same_noise: ClassVar[bool] = True

    def __init__(self, inner_rate: float, rate: float, delta: float) -> None:
        super().__init__()
        self._inner, self._rate, self._delta = inner_rate, rate, delta

    def step(self, params: Params, own: Params, slopes: Slopes) -> Params:
        """A step of beta down v - alpha H_k v."""
        v = outer_slope(params, slopes, self._inner)
        product = hessian_product(params, v, slopes, self._delta)
        return descended(params, descended(v, product, self._inner), self._rate)


def rule(settings: PerFedAvgSettings, rate: float) -> StepRule:
    """The rule of a variant.

    Args:
        settings: the method's.
        rate: beta, in this round.
    """
    if settings.variant == "fo":
        return FirstOrder(settings.inner_rate, rate)
    return HessianFree(settings.inner_rate, rate, settings.delta)


def check_precision(settings: PerFedAvgSettings, precision: str) -> None:
    """Refuse a difference of gradients that are rounded to bf16.

    Args:
        settings: the method's.
        precision: the run's.

    Raises:
        UserError: it would be.
    """
    if settings.variant == "hf" and precision != "fp32":
        raise UserError(
            f'perfedavg.variant="hf" takes the difference of two gradients that are hardly apart, which '
            f'precision="{precision}" cannot tell: wanted precision="fp32", or perfedavg.variant="fo"'
        )


METHOD = Method(
    "strategies.perfedavg:PerFedAvgStrategy",
    "clients.perfedavg:PerFedAvgClient",
    split,
    PerFedAvgSettings,
    personal_model="after",
    averages=True,
    own_steps=True,
    search={
        "perfedavg.inner-rate": Range(0.001, 0.1, start=0.01, log=True, source="the paper"),
        "perfedavg.adaptation-steps": Range(1, 10, start=1, log=True, whole=True, source="the paper"),
    },
)
