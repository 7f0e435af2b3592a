"""Tensors of a network that are fixed: every copy of it has the same ones, and nothing sends, keeps or changes them."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor, nn


def fixed_of(model: nn.Module) -> frozenset[str]:
    """Names of the tensors that nothing changes: those that the network's attribute `fixed_tensors` names.

    Whole numbers that a module leaves out of its state, such as the numbers of positions, are no counters, but fixed.
    """
    constants = [
        f"{place}.{name}" if place else name
        for place, module in model.named_modules()
        for name in module._non_persistent_buffers_set
        if (buffer := module._buffers[name]) is not None and not buffer.is_floating_point()
    ]
    return frozenset((*getattr(model, "fixed_tensors", ()), *constants))


def fixed_digest(model: nn.Module) -> str:
    """SHA-256 of the tensors that the network's `fixed_tensors` names; empty if it names none."""
    if not (names := getattr(model, "fixed_tensors", ())):
        return ""
    found = hashlib.sha256()
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if name in names:
            found.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
            if tensor.device.type != "meta":
                found.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return found.hexdigest()


def counters(model: nn.Module) -> dict[str, Tensor]:
    """The integer buffers of a model that are not fixed: live views."""
    fixed = fixed_of(model)
    return {n: buffer for n, buffer in model.named_buffers() if not buffer.is_floating_point() and n not in fixed}
