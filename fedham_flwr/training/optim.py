"""The optimisers of local training: torch's, by their functional forms, and a user's own by its import path.

The constructors of torch's classes import torch's compiler, which costs more seconds than a small client needs to
train; and a client process may live for one message only.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn
from torch.optim.adam import adam
from torch.optim.adamw import adamw
from torch.optim.sgd import sgd

from fedham_flwr.core import imports
from fedham_flwr.core.errors import UserError, first_line
from fedham_flwr.training.local import LocalTraining

EPSILON = 1e-8
"""Of Adam, as in torch."""
FUSED = ("cpu", "cuda")
"""Devices that have torch's fused kernels."""

GIVEN = ("lr", "learning_rate", "weight_decay", "momentum", "betas")
"""What a user's optimiser is called with beside its parameters, if its signature names it."""


class Optimizer(Protocol):
    """What training asks of an optimiser."""

    def step(self) -> object:
        """One update of its parameters from their gradients."""
        ...


def momentum_step(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    momenta: list[Tensor | None],
    *,
    rate: float,
    momentum: float,
    weight_decay: float = 0.0,
    nesterov: bool = False,
    fused: bool | None = None,
) -> None:
    """One step of torch's SGD with momentum, in place.

    Args:
        params: tensors of any shapes.
        grads: as params.
        momenta: as params; None before the first step, which fills the list unless `momentum` is 0. One that has its
            first gradient later than others starts from 0.
        rate: learning rate.
        momentum: in [0, 1).
        weight_decay: at least 0.
        nesterov: whether with Nesterov's step ahead; then `momentum` is above 0.
        fused: by one kernel; by default torch decides.
    """
    if any(held is not None for held in momenta):
        momenta[:] = [torch.zeros_like(g) if held is None else held for held, g in zip(momenta, grads, strict=True)]
    with torch.no_grad():
        sgd(
            list(params),
            list(grads),
            momenta,
            fused=fused,
            weight_decay=weight_decay,
            momentum=momentum,
            lr=rate,
            dampening=0.0,
            nesterov=nesterov,
            maximize=False,
        )


def descent(settings: LocalTraining) -> dict[str, Any]:
    """The arguments of `momentum_step` that are settings."""
    return {
        "rate": settings.learning_rate,
        "momentum": settings.momentum,
        "weight_decay": settings.weight_decay,
        "nesterov": settings.nesterov,
    }


class SGD:
    """Torch's stochastic gradient descent with momentum.

    Args:
        params: updated in place by `step`; one without a gradient stays as it is.
        training: learning rate, momentum, Nesterov and weight decay.
    """

    def __init__(self, params: Sequence[nn.Parameter], training: LocalTraining) -> None:
        self._params = list(params)
        self._settings = training
        self._momenta: list[Tensor | None] = [None] * len(self._params)
        self._fused = self._params[0].device.type in FUSED

    def step(self) -> None:
        """One update from the parameters' gradients."""
        moved = [i for i, param in enumerate(self._params) if param.grad is not None]
        grads = [cast(Tensor, self._params[i].grad) for i in moved]
        momenta = [self._momenta[i] for i in moved]
        momentum_step([self._params[i] for i in moved], grads, momenta, fused=self._fused, **descent(self._settings))
        for i, momentum in zip(moved, momenta, strict=True):
            self._momenta[i] = momentum


class Adam:
    """Torch's Adam, and AdamW, in which weight decay is no part of the gradient.

    Args:
        params: updated in place by `step`; one without a gradient stays as it is.
        training: learning rate, betas, weight decay, and by `optimizer` which of the two.
    """

    def __init__(self, params: Sequence[nn.Parameter], training: LocalTraining) -> None:
        self._params = list(params)
        self._settings = training
        self._first = [torch.zeros_like(param, memory_format=torch.preserve_format) for param in self._params]
        self._second = [torch.zeros_like(param, memory_format=torch.preserve_format) for param in self._params]
        self._fused = self._params[0].device.type in FUSED
        place = self._params[0].device if self._fused else "cpu"
        self._steps = [torch.zeros((), device=place) for _ in self._params]

    @torch.no_grad()
    def step(self) -> None:
        """One update from the parameters' gradients."""
        moved = [i for i, param in enumerate(self._params) if param.grad is not None]
        first, second, steps = ([some[i] for i in moved] for some in (self._first, self._second, self._steps))
        grads = [cast(Tensor, self._params[i].grad) for i in moved]
        adam_step([self._params[i] for i in moved], grads, first, second, steps, self._settings, self._fused)


def adam_step(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    first: Sequence[Tensor],
    second: Sequence[Tensor],
    steps: Sequence[Tensor],
    settings: LocalTraining,
    fused: bool,
) -> None:
    """One step of torch's Adam or AdamW, in place.

    Args:
        params: tensors of any shapes.
        grads: as params.
        first: their mean gradients.
        second: their mean squared gradients.
        steps: a counter for each.
        settings: learning rate, betas, weight decay, and by `optimizer` which of the two.
        fused: by one kernel.
    """
    (adamw if settings.optimizer == "adamw" else adam)(
        list(params), list(grads), list(first), list(second), [], list(steps), fused=fused, amsgrad=False,
        beta1=settings.beta1, beta2=settings.beta2, lr=settings.learning_rate, weight_decay=settings.weight_decay,
        eps=EPSILON, maximize=False,
    )  # fmt: skip


OPTIMIZERS: dict[str, type[SGD] | type[Adam]] = {"sgd": SGD, "adam": Adam, "adamw": Adam}
"""The built-in ones, by the value of the setting `optimizer`."""


def make(params: Sequence[nn.Parameter], training: LocalTraining) -> Optimizer:
    """A new optimiser of some parameters.

    Args:
        params: at least one.
        training: which one, and its settings.

    Raises:
        UserError: the import path leads to nothing that makes an optimiser.
    """
    built_in = OPTIMIZERS.get(training.optimizer)
    return built_in(params, training) if built_in else _own(params, training)


def _own(params: Sequence[nn.Parameter], training: LocalTraining) -> Optimizer:
    """The user's, called with those of the settings that its signature names."""
    path = training.optimizer
    factory = imports.load_object("optimizer", path)
    what = f'optimizer="{path}"'
    if not callable(factory):
        raise UserError(
            f"{what} is {type(factory).__name__}, and wanted is a class or function that makes an optimiser"
        )
    rate, betas = training.learning_rate, (training.beta1, training.beta2)
    given = (rate, rate, training.weight_decay, training.momentum, betas)
    try:
        made = imports.call(
            "optimizer",
            factory,
            training.optimizer_settings,
            params=list(params),
            **dict(zip(GIVEN, given, strict=True)),
        )
    except UserError:
        raise
    except Exception as error:  # whatever the user's own code raises
        raise UserError(f"{what} cannot be made: {type(error).__name__}: {first_line(error)}") from error
    if not callable(getattr(made, "step", None)):
        raise UserError(f"{what} makes {type(made).__name__}, which has no step() and so is no optimiser")
    if wanted := _wanted(made.step):
        raise UserError(f"{what}: its step wants {', '.join(wanted)}, and is called with nothing")
    return cast(Optimizer, made)


def _wanted(function: Any) -> list[str]:
    """Names of the arguments that a function cannot be called without."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return []
    return [p.name for p in parameters if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]


def check(params: Sequence[Tensor], training: LocalTraining) -> None:
    """Try a user's optimiser on copies of a model's parameters, with a gradient of 0.

    Args:
        params: the model's; they do not change.
        training: which optimiser.

    Raises:
        UserError: the import path leads to nothing that makes an optimiser, or it cannot do with these parameters.
    """
    if training.optimizer in OPTIMIZERS:
        return
    copies = [nn.Parameter(param.detach().clone()) for param in params]
    optimizer = make(copies, training)
    for copy in copies:
        copy.grad = torch.zeros_like(copy)
    try:
        optimizer.step()
    except Exception as error:  # whatever the user's own code raises
        raise UserError(
            f'optimizer="{training.optimizer}" cannot train this model: {type(error).__name__}: {first_line(error)}'
        ) from error
