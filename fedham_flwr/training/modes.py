"""What holds for a model while it is trained: which random numbers dropout draws, and which layers rest."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator

import torch
from torch import nn

from fedham_flwr.core.errors import UserError
from fedham_flwr.core.fixed import fixed_of
from fedham_flwr.core.parameters import Manifest

ONE_VALUE = "Expected more than 1 value per channel"
"""How torch's batch normalisation refuses a batch of one sample, of which it would learn no variance."""


@contextlib.contextmanager
def seeded(device: torch.device, seed: int) -> Iterator[None]:
    """Dropout and transforms draw from the device's global generator: seed it, and put it back afterwards.

    Args:
        device: where the model computes.
        seed: of the draws within.
    """
    cuda = device.type == "cuda"
    with torch.random.fork_rng(devices=[device] if cuda else []):
        torch.default_generator.manual_seed(seed)
        if cuda:
            torch.cuda.manual_seed(seed)
        yield


def trained_of(model: nn.Module, manifest: Manifest, only: Collection[str] | None) -> list[tuple[str, nn.Parameter]]:
    """The parameters that are trained, with their names, in the model's order.

    Args:
        model: the network.
        manifest: the model's.
        only: names of parameters; None for all.

    Raises:
        UserError: a name is no tensor of the model.
    """
    if unknown := sorted(set(only or ()) - set(manifest.names())):
        raise UserError(
            f"fit was to train {unknown[0]!r} only, which is no tensor of the model: wanted some of "
            "self.split.shared and self.split.personal"
        )
    there = manifest.shapes if only is None else only
    return [(name, param) for name, param in model.named_parameters() if name in there]


@contextlib.contextmanager
def training_only(model: nn.Module, manifest: Manifest, only: Collection[str] | None) -> Iterator[None]:
    """No gradients but of these parameters, and no new running statistics but with them, for a while.

    Fixed running statistics (`core.fixed`) never change.

    Args:
        model: in training mode.
        manifest: the model's.
        only: names of parameters; None for all.

    Raises:
        UserError: a batch is too small for batch normalisation.
    """
    frozen = [group for group in manifest.groups if only is not None and not set(group.parameters) & set(only)]
    resting = [name for group in frozen for name in group.buffers]
    resting += [name for name in fixed_of(model) if name.rpartition(".")[2] == "running_mean"]
    for place in {name.rpartition(".")[0] for name in resting}:
        model.get_submodule(place).eval()
    named = model.named_parameters()
    others = [param for name, param in named if only is not None and name not in only and param.requires_grad]
    for param in others:
        param.requires_grad_(False)
    try:
        yield
    except ValueError as error:  # of torch's batch normalisation, which it refuses in training only
        if ONE_VALUE not in str(error):
            raise
        raise UserError(
            "batch normalisation needs two values per channel or more, and a batch, such as the last of an epoch, has "
            "one sample of one pixel there: change batch-size, or take a model with another normalisation "
            '(torchvision.norm="group")'
        ) from error
    finally:
        for param in others:
            param.requires_grad_(True)
