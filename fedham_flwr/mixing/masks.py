"""Which parameters each model of a pool holds critical, packed into bits, and how many any two of them share.

Shape letters: N models, n clients, P scalars of a model's parameters. The bits are N P / 8 bytes, an eighth of a byte
for each scalar; the counts are N N whole numbers, of which a round makes those of its clients anew: n N P operations.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from fedham_flwr.core.layout import COLUMNS
from fedham_flwr.core.parameters import Params
from fedham_flwr.core.threads import in_threads

ROWS = 256
"""Models that are looked at by one thread at a time."""


class Masks:
    """The masks of N models, none of them critical anywhere at first.

    Args:
        shapes: parameter -> its shape, in the model's order.

    Attributes:
        bits: uint8 [N, P / 8, rounded up], parameter after parameter.
        shared: int32 [N, N], how many scalars both hold critical.
    """

    def __init__(self, shapes: Mapping[str, Sequence[int]]) -> None:
        self._shapes = {name: tuple(shape) for name, shape in shapes.items()}
        self._size = sum(torch.Size(shape).numel() for shape in self._shapes.values())
        self.bits = torch.zeros(0, -(-self._size // 8), dtype=torch.uint8)
        self.shared = torch.zeros(0, 0, dtype=torch.int32)

    def add(self, count: int) -> None:
        """Take note of so many new models."""
        self.bits, self.shared = pad(self.bits, (0, 0, 0, count)), pad(self.shared, (0, count, 0, count))

    def pack(self, mask: Mapping[str, Tensor]) -> Tensor:
        """A model's mask as bits: uint8 [P / 8].

        Args:
            mask: bool, for each parameter.
        """
        flat = torch.cat([mask[name].reshape(-1) for name in self._shapes])
        return torch.from_numpy(np.packbits(flat.numpy()))

    def of(self, row: int) -> Params:
        """A model's mask: bool, for each parameter."""
        flat = torch.from_numpy(np.unpackbits(self.bits[row].numpy(), count=self._size)).bool()
        sizes = [torch.Size(shape).numel() for shape in self._shapes.values()]
        parts = zip(self._shapes.items(), torch.split(flat, sizes), strict=True)
        return {name: part.view(shape) for (name, shape), part in parts}

    def put(self, rows: Tensor, bits: Sequence[Tensor]) -> None:
        """Put masks in place of old ones, and count anew what they share with others.

        Args:
            rows: int64 [n].
            bits: as `pack` gives them.
        """
        self.bits[rows] = torch.stack(list(bits))
        for at in range(0, len(rows), ROWS):
            some = rows[at : at + ROWS]
            found = self._counts(some)
            self.shared[some], self.shared[:, some] = found, found.T

    def state_dict(self) -> Params:
        """Bits and counts, live."""
        return {"masks/bits": self.bits, "masks/shared": self.shared}

    def _counts(self, rows: Tensor) -> Tensor:
        """What n models share with all: int32 [n, N]; exact, since float32 counts to 2^24 and a piece is shorter."""

        def some(first: int) -> Tensor:
            found = torch.zeros(len(rows), len(self.bits[first : first + ROWS]), dtype=torch.int32)
            for at in range(0, self.bits.shape[1], COLUMNS // 8):
                columns = slice(at, at + COLUMNS // 8)
                mine, theirs = (
                    torch.from_numpy(np.unpackbits(bits[:, columns].numpy(), axis=1)).float()
                    for bits in (self.bits[rows], self.bits[first : first + ROWS])
                )
                found += (mine @ theirs.T).int()
            return found

        return torch.cat(in_threads(some, range(0, len(self.bits), ROWS)), 1)
