"""The clients' embeddings, each with its optimiser's state.

Shape letters: N clients, n clients of a cohort, d embedding.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fedham_flwr.core.errors import UserError
from fedham_flwr.core.parameters import all_finite
from fedham_flwr.generating.phi import HyperSettings


class Embeddings:
    """z_i of all clients, with the optimiser's state of each: who is not in the cohort does not move.

    Args:
        settings: the method's settings.

    Attributes:
        clients: ids, in the order of the rows.
        values: [N, d].
        velocity: [N, d]; without momentum it stays 0.
    """

    def __init__(self, settings: HyperSettings) -> None:
        self.settings = settings
        self.clients: tuple[str, ...] = ()
        self.values = torch.empty(0, settings.embedding_dim)
        self.velocity = torch.empty(0, settings.embedding_dim)
        self._rows: dict[str, int] = {}

    def add(self, clients: Sequence[str], generators: Sequence[torch.Generator]) -> None:
        """Give new clients embeddings from the standard normal distribution; the others' do not change.

        Args:
            clients: ids that have none.
            generators: one for each; its draws depend on nothing else.
        """
        assert not self._rows.keys() & set(clients), "these clients have embeddings"
        fresh = [torch.randn(1, self.settings.embedding_dim, generator=generator) for generator in generators]
        self.clients = (*self.clients, *clients)
        self._rows = {client: row for row, client in enumerate(self.clients)}
        self.values = torch.cat([self.values, *fresh])
        self.velocity = torch.cat([self.velocity, *map(torch.zeros_like, fresh)])
        assert len(self.values) == len(self.clients), "a generator for each client"

    def rows(self, clients: Sequence[str]) -> Tensor:
        """Numbers of the clients' rows: int64 [n]."""
        return torch.tensor([self._rows[client] for client in clients], dtype=torch.int64)

    def of(self, clients: Sequence[str]) -> Tensor:
        """Copies of the clients' embeddings: [n, d]."""
        return self.values[self.rows(clients)]

    def step(self, clients: Sequence[str], gradient: Tensor, decay: bool = True) -> None:
        """A step of SGD for the embeddings of some clients.

        Args:
            clients: ids, each once.
            gradient: with respect to their embeddings [n, d].
            decay: whether with weight decay.

        Raises:
            UserError: the step leads to embeddings that are not finite; it is not taken.
        """
        rows = self.rows(clients)
        settings, slope = self.settings, gradient.to(self.values)
        values, velocity = sgd_step(
            settings, settings.embedding_learning_rate, self.values[rows], self.velocity[rows], slope, decay
        )
        if not all_finite(values):
            raise UserError(
                f"the embeddings diverged: lower {settings.section}.embedding-learning-rate="
                f"{settings.embedding_learning_rate:g}"
            )
        self.values[rows] = values
        if self.settings.momentum:
            self.velocity[rows] = velocity


def sgd_step(
    settings: HyperSettings, rate: float, weight: Tensor, velocity: Tensor | None, gradient: Tensor, decay: bool = True
) -> tuple[Tensor, Tensor]:
    """The weight and the velocity after a step."""
    direction = gradient.add(weight, alpha=settings.weight_decay) if decay else gradient
    if velocity is not None:
        direction = direction.add(velocity, alpha=settings.momentum)
    return weight.sub(direction, alpha=rate), direction
