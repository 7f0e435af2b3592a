"""How large a network is for its images, and what memory a step of training takes, told before it is made."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fedham_flwr.core.imports import is_path
from fedham_flwr.models import NetworkSettings, build
from fedham_flwr.models.hub_folder import HUB

LARGE = 512
"""Images of more pixels a side are seldom meant to be trained on as they are."""
COPIES = 4
"""Of the parameters in training: themselves, their gradients, momenta, and the model that the client started from."""
CGROUP = Path("/sys/fs/cgroup/memory.max")
"""Where a container's own bound is written."""


def step_bytes(name: str, shape: tuple[int, ...], outputs: int, batch: int, settings: NetworkSettings) -> int:
    """About how many bytes of memory a step of training takes: what each layer gives, and the copies of parameters.

    Nothing of that size is made for it.

    Args:
        name: of the network; for one of a user's own the answer is 0.
        shape: (channels, height, width) of an image.
        outputs: of the network.
        batch: samples of a step.
        settings: of networks.

    Raises:
        UserError: the network does not take such images.
    """
    if is_path(name) or name == HUB:
        return 0
    given = 0

    def count(_module: nn.Module, _inputs: Any, output: Any) -> None:
        nonlocal given
        given += output.numel() if isinstance(output, Tensor) else 0

    with torch.device("meta"):
        model = build(name, shape, outputs, 0, settings)
        for module in model.modules():
            if not [*module.children()]:
                module.register_forward_hook(count)
        model(torch.zeros(2, *shape))
    parameters = sum(param.numel() for param in model.parameters())
    return 4 * (given // 2 * batch + COPIES * parameters)


def memory() -> int:
    """Bytes of memory that this machine has, or the container that this process is in."""
    whole = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        return min(whole, int(CGROUP.read_text()))
    except (OSError, ValueError):  # there is no container, or it has no bound
        return whole


def model_line(name: str, model: nn.Module, shape: tuple[int, ...]) -> str:
    """A network in a line: its name, its parameters, their bytes, and the images that it is for.

    Args:
        name: of the network.
        model: the network.
        shape: of a sample.
    """
    params = list(model.parameters())
    size = sum(param.numel() * param.element_size() for param in params)
    line = f"model  {name}: {sum(param.numel() for param in params):,} parameters ({size / 1e6:,.1f} MB)"
    if len(shape) != 3:
        return line
    colour = {1: "grey", 3: "in colour"}.get(shape[0], f"of {shape[0]} channels")
    return f"{line}, images of {shape[2]} x {shape[1]} pixels, {colour}"
