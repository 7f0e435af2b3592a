"""Memory of a device: what is there, whether it ran out, and data that stay on it."""

from __future__ import annotations

import torch
from torch import Tensor

from fedham_flwr.core.errors import UserError
from fedham_flwr.core.trees import same

BLOCK_BYTES = 8 * 2**20
"""Of the parameters, momenta and gradients of a block: more leave the processor's caches."""
MOST, LEAST = 512, 8
"""Clients of a block."""
FULL = "the memory is full"
SHARE = 0.25
"""Of the free memory of a device, for a data set that stays there."""


def block(size: int) -> int:
    """Clients of a block.

    Args:
        size: of a network's parameters in bytes.
    """
    return max(LEAST, min(MOST, BLOCK_BYTES // max(1, 3 * size)))


def ran_out(error: BaseException) -> bool:
    """Whether an error is that of a full memory, of a GPU or of the processor."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)


def too_large(device: torch.device) -> UserError:
    """What a user is told when one client alone does not fit."""
    return UserError(f"one client does not fit into the memory of {device}: lower batch-size, or take a smaller model")


def release(device: torch.device) -> None:
    """Give back what torch holds for later."""
    if device.type == "cuda":
        torch.cuda.empty_cache()


def free(device: torch.device) -> int:
    """Bytes that are free on a GPU; 0 on the processor, whose data are where they are."""
    return int(torch.cuda.mem_get_info(device)[0]) if device.type == "cuda" else 0


def moved(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor on a device; to a GPU by way of pinned memory, which it copies while the processor goes on."""
    if device.type != "cuda" or tensor.device.type != "cpu":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


class Resident:
    """Data sets that are on a device as a whole, so that batches are gathered there.

    Args:
        device: where networks run.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._there: list[tuple[Tensor, Tensor, tuple[Tensor, Tensor]]] = []  # as given, which stay alive, and there

    def at_hand(self, features: Tensor, labels: Tensor) -> tuple[Tensor, Tensor] | None:
        """Features and labels on the device; None if they do not fit beside all else.

        Args:
            features: of all samples of a data set.
            labels: theirs.
        """
        if self._device.type == features.device.type:
            return features, labels
        for known, of_known, there in self._there:
            if same(known, features) and same(of_known, labels):
                return there
        if sum(t.numel() * t.element_size() for t in (features, labels)) > SHARE * free(self._device):
            return None
        found = moved(features, self._device), moved(labels, self._device)
        self._there.append((features, labels, found))
        return found
