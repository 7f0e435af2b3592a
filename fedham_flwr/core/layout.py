"""Where the tensors of a layer group lie in one row of an array, and the pieces that such a row is worked on in."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import torch

from fedham_flwr.core.parameters import LayerGroup, Manifest

COLUMNS = 4096
"""Scalars of each model in one piece: a piece of a hundred models is 1.6 MB."""


@dataclass(frozen=True)
class Block:
    """Where one tensor lies in the array of its layer group."""

    name: str
    start: int
    size: int
    shape: tuple[int, ...]
    parameter: bool  # and not a buffer, which no gradient touches

    def within(self, columns: slice) -> slice:
        """Which scalars of the tensor are in some columns of the array."""
        return slice(max(0, columns.start - self.start), max(0, columns.stop - self.start))


def blocks_of(group: LayerGroup, held: Collection[str], manifest: Manifest) -> list[Block]:
    """Where the tensors of a layer group lie.

    Args:
        group: the group.
        held: names of the tensors that the array holds.
        manifest: the model's.
    """
    blocks, start = [], 0
    for name in group.names:
        if name in held:
            size = torch.Size(manifest.shapes[name]).numel()
            blocks.append(Block(name, start, size, manifest.shapes[name], name in group.parameters))
            start += size
    return blocks


def pieces(first: int, size: int, step: int = 1, columns: int = 0) -> list[slice]:
    """Every `step`th piece of so many scalars (by default COLUMNS), from the first given."""
    columns = columns or COLUMNS
    return [slice(a, min(a + columns, size)) for a in range(first * columns, size, step * columns)]


def width(models: int) -> int:
    """Scalars of each model in one piece: with few models more, since each piece costs a call."""
    return COLUMNS * max(1, min(16, 128 // max(1, models)))
