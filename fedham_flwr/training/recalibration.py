"""Running statistics of batch normalisation, taken anew from a client's training data.

The running statistics that come with a model belong to the weights that it was trained with. Those of a mean or a
mixture of models belong to no weights at all, or to the client's last ones, and are wrong for it in every layer behind
the first. One pass over the training split, without labels and gradients, makes those of the weights that are there.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from fedham_flwr.core.parameters import Manifest

PART = 256
"""The most samples of a part; a client with no more has the statistics of all of its samples as one batch."""
FEWEST = 2
"""Samples below which nothing is taken: one may have a single value in a channel, which has no variance."""


def has_statistics(model: nn.Module, manifest: Manifest) -> bool:
    """Whether there is something to take anew: batch normalisation with running statistics that are not fixed."""
    return bool(_layers(model, manifest))


def parts(index: Tensor, generator: torch.Generator) -> tuple[Tensor, ...]:
    """The training split in a few equal parts, none of which has a single sample; none of too small a split.

    Args:
        index: int64 [n], the numbers of the samples.
        generator: on the CPU; draws who is with whom, as data may be sorted by their classes.
    """
    if len(index) < FEWEST:
        return ()
    return index[torch.randperm(len(index), generator=generator)].tensor_split(-(-len(index) // PART))


@contextlib.contextmanager
def recalibrating(model: nn.Module, manifest: Manifest) -> Iterator[Callable[[int], None]]:
    """For a while a forward pass takes running statistics; all other layers work as in evaluation.

    Args:
        model: the network.
        manifest: the model's.

    Yields:
        What is told the number of each part, from 0, before its forward pass: statistics are the means over the parts
        so far, and so nothing is left of those before the first.
    """
    layers = _layers(model, manifest)
    was = [layer.momentum for layer in layers]
    counts = [(count, count.clone()) for layer in layers if (count := layer.num_batches_tracked) is not None]
    model.eval()
    for layer in layers:
        layer.train()

    def told(number: int) -> None:
        for layer in layers:
            layer.momentum = 1 / (number + 1)

    try:
        yield told
    finally:
        for layer, momentum in zip(layers, was, strict=True):
            layer.momentum = momentum
            layer.eval()
        for count, before in counts:  # it is of training, and kept with the model
            count.copy_(before)


def _layers(model: nn.Module, manifest: Manifest) -> list[nn.modules.batchnorm._BatchNorm]:
    return [
        module
        for name, module in model.named_modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm)
        and (f"{name}.running_mean" if name else "running_mean") in manifest.shapes
    ]
