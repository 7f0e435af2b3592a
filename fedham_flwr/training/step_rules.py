"""A step of local training of a method's own, in place of the optimiser's, written once for one client and for many.

Letters: n clients, m of them that still have a step.
"""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import ClassVar, Self

import torch
from torch import Tensor

from fedham_flwr.core.errors import DivergedError, UserError
from fedham_flwr.core.parameters import Params, all_finite

Slopes = Callable[[Params, int], Params]
"""Of parameters [m, ...] and the number of a part of the step's batch: the gradients of its mean loss there."""


class StepRule(ABC):
    """How a step changes the parameters.

    Args:
        own: what the client has beside the model, by name, which steps may change in place.

    Attributes:
        parts: into how many independent batches a step's samples are cut; each is as large as `batch-size` says.
        same_noise: all gradients of a part in one step drop the same values, as one that subtracts them needs.
    """

    parts: ClassVar[int] = 1
    same_noise: ClassVar[bool] = False

    def __init__(self, own: Mapping[str, Tensor] | None = None) -> None:
        self.own: Params = dict(own or {})

    @abstractmethod
    def step(self, params: Params, own: Params, slopes: Slopes) -> Params:
        """The parameters after a step.

        Args:
            params: of each client, [m, ...]; they may be changed in place.
            own: as given, of each client: [m, ...].
            slopes: gradients of the loss, with weight decay; of a part without samples they are the decay alone.
        """

    def stack(self, others: Sequence[Self]) -> Params:
        """What several clients have beside the model, stacked: [n, ...].

        Args:
            others: the rules of all of them, of this class, in order; this one is the first.
        """
        return {name: torch.stack([other.own[name] for other in others]) for name in self.own}


class Descent(StepRule):
    """A plain step down the gradient, without momentum.

    Args:
        rate: of the step.
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        self._rate = rate

    def step(self, params: Params, own: Params, slopes: Slopes) -> Params:
        """The parameters less rate times their gradients."""
        return descended(params, slopes(params, 0), self._rate)


def stepped(rule: StepRule, params: Params, own: Params, slopes: Slopes) -> Params:
    """What a step of the rule gives; arguments as of `StepRule.step`.

    Raises:
        UserError: a parameter is missing, or has another shape.
    """
    shapes = {name: tuple(param.shape) for name, param in params.items()}
    after = rule.step(params, own, slopes)
    for name, shape in shapes.items():
        found = tuple(after[name].shape) if name in after else None
        if found != shape:
            what = "nothing" if found is None else f"a tensor of shape {found}"
            raise UserError(
                f"{type(rule).__name__}.step gives {what} for the parameter {name}: wanted shape {shape}, since it "
                "gives all parameters, of each client"
            )
    return after


@contextlib.contextmanager
def placed(rule: StepRule | None, device: torch.device) -> Iterator[None]:
    """For a training, have what a client has beside the model as copies where the model is; afterwards, on the CPU.

    Args:
        rule: the client's; None for none.
        device: where the model is.

    Raises:
        DivergedError: afterwards a tensor is not finite; nothing of it may be kept.
    """
    if rule is None:
        yield
        return
    rule.own = {name: value.to(device, copy=True) for name, value in rule.own.items()}
    yield
    rule.own = {name: value.detach().cpu() for name, value in rule.own.items()}
    for name, value in rule.own.items():
        if not all_finite(value):
            raise DivergedError(f"training diverged: {name} holds NaN or infinity; lower learning-rate")


def descended(params: Params, slopes: Params, rate: float) -> Params:
    """Parameters less rate times slopes, name by name, as new tensors."""
    return {name: param - rate * slopes[name] for name, param in params.items()}


def wide(values: Tensor, like: Tensor) -> Tensor:
    """A number for each client [m], to be multiplied with tensors [m, ...]."""
    return values.view(-1, *[1] * (like.dim() - 1))
