"""A loss of a method's own, written once for one client and for many at the same time.

Letters: m clients, b samples of each in a batch (fillers among them), p predictions of a sample.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, Self

import torch
from jaxtyping import Float
from torch import Tensor, nn

from fedham_flwr.core.errors import UserError
from fedham_flwr.core.parameters import Params


class Batch(NamedTuple):
    """The samples of a step, of one client or of several.

    Attributes:
        x: inputs [m b, ...], the clients' one after the other.
        y: targets [m b, ...].
        clients: m.
        real: float32 [m, b], 1 for a sample and 0 for a filler; None where there are no fillers.
    """

    x: Tensor
    y: Tensor
    clients: int = 1
    real: Float[Tensor, "m b"] | None = None

    def each(self, values: Tensor) -> Tensor:
        """A value of each client as a value of each of its samples.

        Args:
            values: [m, ...].

        Returns:
            [m b, ...].
        """
        return values.repeat_interleave(len(self.y) // self.clients, 0)

    def means(self, terms: Tensor) -> Float[Tensor, " m"]:
        """The mean of each client's terms, without those of fillers.

        Args:
            terms: a number for each prediction, [m b p] or [m b, ...].
        """
        return means_of(terms, self.clients, self.real)

    def mean_rows(self, rows: Tensor) -> Float[Tensor, "m d"]:
        """The mean of each client's rows, without those of fillers.

        Args:
            rows: one or several for each sample, [m b p, d].
        """
        rows = rows.view(self.clients, -1, rows.shape[-1])
        if self.real is None:
            return rows.mean(1)
        weights = self.real.repeat_interleave(rows.shape[1] // self.real.shape[1], 1)
        return (rows * weights[..., None]).sum(1) / weights.sum(1).clamp(min=1)[:, None]

    def part(self, number: int, parts: int) -> Batch:
        """Every so manieth sample of each client.

        Args:
            number: of the first one, from 0.
            parts: how many parts there are.
        """
        if parts == 1:
            return self
        x, y = (t.view(self.clients, -1, *t.shape[1:])[:, number::parts].flatten(0, 1) for t in (self.x, self.y))
        return Batch(x, y, self.clients, None if self.real is None else self.real[:, number::parts])


def means_of(terms: Tensor, clients: int, real: Float[Tensor, "m b"] | None) -> Float[Tensor, " m"]:
    """The mean of each client's terms [m b, ...], without those of fillers; 0 for a client that has nothing else."""
    if real is None:
        return terms.view(clients, -1).mean(1)
    terms = terms.view(*real.shape, -1)
    return (terms * real.unsqueeze(2)).sum((1, 2)) / (real.sum(1).clamp(min=1) * terms.shape[2])


LossOfClients = Callable[[nn.Module, Batch], Float[Tensor, " m"]]
"""The mean loss of each client, of the model and a step's samples."""


class OwnLoss(ABC):
    """A loss of a method's own.

    Args:
        values: what is the client's own in it, by name; a value that is changed in place is so in the next step too.
    """

    def __init__(self, values: Mapping[str, Tensor]) -> None:
        self.values: Params = dict(values)

    @abstractmethod
    def of(self, model: nn.Module, batch: Batch, values: Mapping[str, Tensor]) -> Float[Tensor, " m"]:
        """The mean loss of each client, in nats where it is a likelihood.

        Args:
            model: the network, with the weights of each client in its samples.
            batch: the samples.
            values: as given, of each client: [m, ...].
        """

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor) -> Float[Tensor, ""]:
        """The mean loss of one client's batch."""
        return self._means(model, Batch(x, y), {name: value[None] for name, value in self.values.items()})[0]

    def stacked(self, others: Sequence[Self]) -> LossOfClients:
        """One loss for several clients.

        Args:
            others: the losses of all of them, of this class, in order; this one is the first.
        """
        whole = {name: torch.stack([other.values[name] for other in others]) for name in self.values}

        def of(model: nn.Module, batch: Batch) -> Tensor:
            return self._means(model, batch, {name: value[: batch.clients] for name, value in whole.items()})

        return of

    def _means(self, model: nn.Module, batch: Batch, values: Mapping[str, Tensor]) -> Float[Tensor, " m"]:
        """What `of` gives.

        Raises:
            UserError: it is no number for each client, such as one mean for all of them.
        """
        found = self.of(model, batch, values)
        if tuple(found.shape) != (batch.clients,):
            raise UserError(
                f"{type(self).__name__}.of gives a tensor of shape {tuple(found.shape)} for a batch of {batch.clients} "
                f"clients: wanted {(batch.clients,)}, the mean loss of each, as batch.means(terms) gives it"
            )
        return found
