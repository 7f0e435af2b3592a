"""Inner products of how far the models of a pool have moved from the common start, from which methods weigh them.

Shape letters: N models in the pool, n clients, P scalars of a model's parameters. Each time n clients have trained
their n rows are made anew by matrix products, n N P multiply-adds in float64; distances and cosines then cost N for a
client. What is kept are N N numbers: 400 MB of ten thousand clients. Products of differences and not of models, since
models that lie near to each other would leave nothing but rounding of their distance.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import pad

from fedham_flwr.core.layout import blocks_of, pieces
from fedham_flwr.core.parameters import Manifest, Params
from fedham_flwr.core.threads import in_threads
from fedham_flwr.mixing.bank import Bank

ROWS = 256
"""Models that are looked at by one thread at a time."""


class Gram:
    """<w_i - w_0, w_j - w_0> of all models in a bank, over the parameters alone.

    Args:
        manifest: the model's.
        bank: the models.
        first: w_0, the common start, of the bank's tensors.

    Attributes:
        products: float32 [N, N].
        along: float64 [N], <w_i - w_0, w_0>.
    """

    def __init__(self, manifest: Manifest, bank: Bank, first: Params) -> None:
        self._bank, self._first = bank, first
        self._blocks = {
            group.name: [block for block in blocks_of(group, set(first), manifest) if block.parameter]
            for group in manifest.groups
            if group.name in bank.groups
        }
        self._size = sum(float(first[b.name].double().square().sum()) for each in self._blocks.values() for b in each)
        self.products = torch.zeros(0, 0)
        self.along = torch.zeros(0, dtype=torch.float64)

    def add(self, count: int) -> None:
        """Take note of so many new models, which are the common start."""
        self.products = pad(self.products, (0, count, 0, count))
        self.along = pad(self.along, (0, count))

    def update(self, clients: Sequence[str]) -> None:
        """Make the rows of these clients anew, whose models have changed."""
        for at in range(0, len(clients), ROWS):
            rows = self._bank.rows(clients[at : at + ROWS])
            found = self._rows(rows).float()
            self.products[rows], self.products[:, rows] = found, found.T
        for client, row in zip(clients, self._bank.rows(clients).tolist(), strict=True):
            model, total = self._bank.model(client), 0.0
            for name in (block.name for each in self._blocks.values() for block in each):
                first = self._first[name].double()
                total += float(((model[name].cpu().double() - first) * first).sum())
            self.along[row] = total
        self._bank.release()

    def squares(self, rows: Tensor) -> Tensor:
        """|w_i - w_j|^2 of some models i and all models j: float64 [n, N]."""
        own = self.products.diagonal().double()
        return (own[rows, None] + own - 2 * self.products[rows].double()).clamp_min(0)

    def cosines(self, rows: Tensor) -> Tensor:
        """Cosines of w_i - w_0 and w_j - w_0, 0 of a model that has not moved: float64 [n, N]."""
        lengths = self.products.diagonal().double().sqrt()
        both = lengths[rows, None] * lengths
        return torch.where(both > 0, self.products[rows].double() / both, 0.0).clamp(-1, 1)

    def model_cosines(self, rows: Tensor) -> Tensor:
        """Cosines of w_i and w_j, 0 of a model that is 0: float64 [n, N]."""
        lengths = self.lengths()
        products = self.products[rows].double() + self.along[rows, None] + self.along + self._size
        both = lengths[rows, None] * lengths
        return torch.where(both > 0, products / both, 0.0).clamp(-1, 1)

    def lengths(self) -> Tensor:
        """|w_j| of all models: float64 [N]."""
        return (self.products.diagonal().double() + 2 * self.along + self._size).clamp_min(0).sqrt()

    def state_dict(self) -> Params:
        """The numbers, live; they are kept, since made in other parts they might be rounded differently."""
        return {"gram/products": self.products, "gram/along": self.along}

    def _rows(self, rows: Tensor) -> Tensor:
        """Products of n models with all: float64 [n, N]."""
        arrays = self._bank.arrays

        def some(first: int) -> Tensor:
            there = slice(first, first + ROWS)
            found: Tensor = torch.zeros((), dtype=torch.float64)
            for group, blocks in self._blocks.items():
                for block in blocks:
                    base = self._first[block.name].reshape(-1).to(arrays[group].device)
                    for piece in pieces(0, block.size):
                        columns, w = slice(block.start + piece.start, block.start + piece.stop), base[piece].double()
                        mine, theirs = (arrays[group][which, columns].double() - w for which in (rows, there))
                        found = found.to(mine.device) + mine @ theirs.T
            return found.cpu()

        return torch.cat(in_threads(some, range(0, len(self._bank.clients), ROWS)), 1)
