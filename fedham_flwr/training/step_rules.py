"""A step of local training of a method's own, in place of the optimiser's, written once for one client and for many.

Letters: n clients, m of them that still have a step.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar, Self

import torch
from torch import Tensor

from fedham_flwr.core.parameters import Params

Slopes = Callable[[Params, int], Params]
"""Of parameters [m, ...] and the number of a part of the step's batch: the gradients of its mean loss there."""


class StepRule(ABC):
    """How a step changes the parameters.

    Args:
        own: what the client has beside the model, by name, which steps may change in place.

    Attributes:
        parts: into how many independent batches a step's samples are cut; each is as large as `batch-size` says.
    """

    parts: ClassVar[int] = 1

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


def wide(values: Tensor, like: Tensor) -> Tensor:
    """A number for each client [m], to be multiplied with tensors [m, ...]."""
    return values.view(-1, *[1] * (like.dim() - 1))
