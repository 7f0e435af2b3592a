"""Networks that declare their layer groups, by name."""

from __future__ import annotations

import torch
from torch import nn

from fedham_flwr.errors import UserError
from fedham_flwr.models.cnn import CNN, DigitsCNN
from fedham_flwr.models.lenet import LeNet, LeNetBN
from fedham_flwr.seeding import derive

MODELS: dict[str, type[CNN | LeNet]] = {
    "cnn": CNN,
    "digits-cnn": DigitsCNN,
    "lenet": LeNet,
    "lenet-bn": LeNetBN,
}


def resolve(name: str, shape: tuple[int, ...]) -> str:
    """The model's name, `auto` replaced by the one that fits: digits-cnn for images below 16 pixels, else cnn."""
    if name != "auto":
        return name
    return "digits-cnn" if min(shape[1:]) < CNN.smallest else "cnn"


def build(name: str, shape: tuple[int, ...], classes: int, seed: int) -> nn.Module:
    """A network with its first parameters, which depend on the seed alone: every client and method starts there.

    Args:
        name: a key of `MODELS`, or "auto".
        shape: (channels, height, width) of one image.
        classes: number of outputs.
        seed: the run's seed.

    Raises:
        UserError: the images are too small for the network.
    """
    name = resolve(name, shape)
    model = MODELS[name]
    if min(shape[1:]) < model.smallest:
        raise UserError(
            f'model="{name}" needs images of at least {model.smallest} x {model.smallest} pixels, and the data set '
            f'has {shape[1]} x {shape[2]}: try model="auto"'
        )
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(derive(seed, "init"))
        return model(shape, classes)
