"""pFedMe: clients use models that are held near the common one, which descends what it costs them to be held there.

Source: Dinh, Tran, Nguyen, "Personalized Federated Learning with Moreau Envelopes", NeurIPS 2020, arXiv:2006.08848,
Algorithm 1, equations 2 to 8. Symbols: w the common model, w_k client k's copy, theta_k its personal model, L_k its
loss, lambda the weight of the distance, F_k(w) = min_theta L_k(theta) + (lambda/2) |theta - w|^2 the Moreau envelope,
K inner steps of rate rho, eta the rate of the copy, beta the server's, m_k the client's training samples.

Identity card
    shared      every layer group, of w
    personal    nothing is kept; the personal model is theta_k, made anew in each round
    lives       w on the server
    down, up    P scalars each for every client of the cohort and round
    cost        client: K times FedAvg's
    server sees its copy of the common model after training; never its personal model
    peers see   the mean of the copies
    bound       beta p C

The round
    R1  server: choose S, send w to each of its clients                         strategies/pfedme.py
    R2  client: theta_k <- theta_k - rho (grad L_k(theta_k) + lambda (theta_k - w_k)), K times on a batch   `inner_step`
    R3  client: w_k <- w_k - eta lambda (w_k - theta_k), the gradient of F_k, then the next batch           `outer_step`
    R4  client: send w_k and m_k; use theta_k                                   clients/pfedme.py
    R5  server: w <- (1 - beta) w + beta sum_{k in S} m_k w_k / sum_{k in S} m_k          `server_step`

eta is `learning-rate`, with its schedule; rho and beta are the method's own, and its steps too: momentum has no effect,
and other optimisers and `max-grad-norm` are refused. Weight decay is part of L_k, as in the authors' code. With
lambda = 0 w never changes, and theta_k is local training; with beta = 1 the server takes the mean. With rho lambda
above 2 R2 would not come to rest, which is refused. Running statistics are those that the inner steps see; of them
the server takes the mean, whatever beta is.

The paper leaves open where R2 begins: as in the authors' code it begins a round at w and goes on from batch to batch.
What that code prints of personal models is of w_k: what it keeps of theta_k are the network's own tensors, which are
set to w_k before they are scored. In the first round of logistic regression on the clients of its results w_k is right
on 0.915 of the test samples and theta_k on 0.526, and the file of results begins with 0.895: docs/published.md.

Deviations from the paper: the mean is weighted by samples, as in the authors' code and in FedAvg, where the paper
counts every client once; only the clients of S train, where in the paper all do and S send.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

import torch
from annotated_types import Ge, Gt
from torch import Tensor

from fedham_flwr.algorithms.fedavg import split
from fedham_flwr.core.errors import UserError
from fedham_flwr.core.methods import Method
from fedham_flwr.core.parameters import Params
from fedham_flwr.core.search_space import Range
from fedham_flwr.training.step_rules import Slopes, StepRule


@dataclass(frozen=True)
class PFedMeSettings:
    """Settings under `pfedme.`; the defaults are the authors'.

    Attributes:
        penalty: lambda, >= 0; with 0 the common model never changes.
        inner_steps: K, on each batch.
        inner_rate: rho, of the personal model.
        mixing: beta, > 0: how far the server goes to the clients' mean; 1 is the mean, and the authors also take 2.
    """

    penalty: Annotated[float, Ge(0)] = 15.0
    inner_steps: Annotated[int, Ge(1)] = 5
    inner_rate: Annotated[float, Gt(0)] = 0.09
    mixing: Annotated[float, Gt(0)] = 1.0


def inner_step(personal: Tensor, slope: Tensor, copy: Tensor, penalty: float, rate: float) -> Tensor:
    """R2: theta_k after a step down L_k(theta) + (lambda/2) |theta - w_k|^2.

    Args:
        personal: theta_k, [m, ...].
        slope: grad L_k at theta_k.
        copy: w_k.
        penalty: lambda.
        rate: rho.
    """
    return personal - rate * (slope + penalty * (personal - copy))


def outer_step(copy: Tensor, personal: Tensor, penalty: float, rate: float) -> Tensor:
    """R3: w_k after a step down its Moreau envelope, of which the gradient is lambda (w_k - theta_k).

    Args:
        copy: w_k, [m, ...].
        personal: theta_k.
        penalty: lambda.
        rate: eta.
    """
    return copy - rate * penalty * (copy - personal)


def server_step(before: Mapping[str, Tensor], mean: Mapping[str, Tensor], mixing: float) -> Params:
    """R5: (1 - beta) w + beta mean, in float64; with beta = 1 the mean bit for bit.

    Args:
        before: w.
        mean: the clients' mean, of the same names.
        mixing: beta.
    """
    return {
        name: torch.lerp(before[name].double(), there.double(), mixing).to(there.dtype) for name, there in mean.items()
    }


class Envelope(StepRule):
    """R2, R3 of a batch.

    Args:
        start: theta_k at first, by the parameters' names.
        settings: the method's.
        rate: eta.
    """

    def __init__(self, start: Mapping[str, Tensor], settings: PFedMeSettings, rate: float) -> None:
        super().__init__(start)
        self._settings, self._rate = settings, rate

    def step(self, params: Params, own: Params, slopes: Slopes) -> Params:
        """The copy after a batch; the personal model is changed in place."""
        penalty, rate = self._settings.penalty, self._settings.inner_rate
        for _ in range(self._settings.inner_steps):
            found = slopes(own, 0)
            for name, personal in own.items():
                personal.copy_(inner_step(personal, found[name], params[name], penalty, rate))
        return {name: outer_step(copy, own[name], penalty, self._rate) for name, copy in params.items()}


def check_rates(settings: PFedMeSettings) -> None:
    """Refuse inner steps that go further beyond w_k with every step, whatever the loss.

    Args:
        settings: the method's.

    Raises:
        UserError: rho lambda is above 2.
    """
    if settings.inner_rate * settings.penalty > 2:
        raise UserError(
            f"pfedme.inner-rate={settings.inner_rate:g} times pfedme.penalty={settings.penalty:g} is "
            f"{settings.inner_rate * settings.penalty:g}, with which personal models run away from the common one: "
            "wanted at most 2"
        )


METHOD = Method(
    "strategies.pfedme:PFedMeStrategy",
    "clients.pfedme:PFedMeClient",
    split,
    PFedMeSettings,
    personal_model="after",
    averages=True,
    own_steps=True,
    search={
        "pfedme.penalty": Range(1.0, 20.0, start=15.0, log=True, source="the authors' code"),
        "pfedme.inner-rate": Range(0.01, 0.1, start=0.09, log=True, source="the authors' code"),
        "pfedme.mixing": Range(1.0, 2.0, start=1.0, source="the authors' code, which has 1 or 2"),
    },
)
