"""The server's optimiser: the way from its model to what its clients' models come to is a step to take, or to scale.

w is the server's model, wbar the aggregate of what the clients of round t have sent, and D_t = wbar - w. With the rate
eta, the decays beta1 (`server.momentum`) and beta2, and tau:

    (1) momentum     w <- w + eta u_t,                        u_t = beta1 u_{t-1} + D_t
    (2) the others   w <- w + eta m_t / (sqrt(v_t) + tau),    m_t = beta1 m_{t-1} + (1 - beta1) D_t
        adam         v_t = beta2 v_{t-1} + (1 - beta2) D_t^2
        yogi         v_t = v_{t-1} - (1 - beta2) D_t^2 sign(v_{t-1} - D_t^2)
        adagrad      v_t = v_{t-1} + D_t^2

with u and m from 0 and v from tau^2. (1): FedAvgM, Hsu, Qi, Brown, "Measuring the Effects of Non-Identical Data
Distribution for Federated Visual Classification", 2019, arXiv:1909.06335, section 4.3, and with a rate eta Reddi et al.
(2): FedAdam, FedYogi, FedAdagrad, Reddi et al., "Adaptive Federated Optimization", ICLR 2021, arXiv:2003.00295,
algorithm 2, which has no correction of the first steps' bias.

With beta1 = 0 and eta = 1, (1) is the aggregate itself, bit for bit: it is computed as
wbar + eta beta1 u_{t-1} + (eta - 1) D_t, without the terms whose factor is 0. By Cauchy and Schwarz (2) moves no number
by more than eta (1 - beta1) / sqrt((1 - beta2) (1 - beta1^2 / beta2)) with adam if beta1^2 < beta2, whatever is sent:
2.35 eta with the defaults.

Only parameters take steps. Running statistics are no place from which a gradient leads on, and a step beyond the
aggregate of variances can be below 0: they take the aggregate.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from fedham_flwr.core.aggregation import ServerSettings

FIRST, SECOND = "server/momentum/", "server/second/"
"""What the names of u or m, and of v, begin with in a server's state; no tensor of a model has a slash in its name."""
STATE = "server/"
ADAPTIVE = ("adam", "yogi", "adagrad")
RATE, ADAPTIVE_RATE = 1.0, 0.01
"""eta of momentum and of the others, where none is given."""


class Moved(NamedTuple):
    """One tensor after a step, and what the optimiser remembers of it: of the same shape and type.

    Attributes:
        after: w.
        first: u or m.
        second: v; None with momentum.
    """

    after: Tensor
    first: Tensor
    second: Tensor | None


def rate(settings: ServerSettings) -> float:
    """The rate eta."""
    return settings.learning_rate or (RATE if settings.optimizer == "momentum" else ADAPTIVE_RATE)


def begin(settings: ServerSettings, params: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What the optimiser remembers before its first step, by the names of a server's state.

    Args:
        settings: the settings; without an optimiser there is nothing.
        params: those that take steps.
    """
    if settings.optimizer == "none":
        return {}
    first = {FIRST + name: torch.zeros_like(tensor) for name, tensor in params.items()}
    if settings.optimizer == "momentum":
        return first
    return first | {SECOND + name: torch.full_like(tensor, settings.tau**2) for name, tensor in params.items()}


def step(
    settings: ServerSettings, before: Tensor, aggregate: Tensor, first: Tensor, second: Tensor | None = None
) -> Moved:
    """(1) or (2) for one tensor, in float64, rounded to its own type.

    Args:
        settings: the settings, with an optimiser.
        before: w, of any shape.
        aggregate: wbar.
        first: u_{t-1} or m_{t-1}.
        second: v_{t-1}; None with momentum.
    """
    eta, beta, kind = rate(settings), settings.momentum, before.dtype
    way, past = aggregate.double() - before.double(), first.to(torch.float64, copy=True)
    if second is None:
        after = aggregate.double()
        after = after + eta * beta * past if beta else after
        after = after + (eta - 1) * way if eta != 1 else after
        return Moved(after.to(kind), past.mul_(beta).add_(way).to(kind), None)
    past.mul_(beta).add_(way, alpha=1 - beta)
    spread = _second(settings, second.to(torch.float64, copy=True), way.square_())
    after = before.double().addcdiv(past, spread.sqrt().add_(settings.tau), value=eta)
    return Moved(after.to(kind), past.to(kind), spread.to(kind))


def _second(settings: ServerSettings, before: Tensor, square: Tensor) -> Tensor:
    """v_t of v_{t-1} and D_t^2; v_{t-1} may be overwritten."""
    if settings.optimizer == "adagrad":
        return before.add_(square)
    if settings.optimizer == "adam":
        return before.mul_(settings.beta2).add_(square, alpha=1 - settings.beta2)
    return before - (1 - settings.beta2) * square * (before - square).sign()
