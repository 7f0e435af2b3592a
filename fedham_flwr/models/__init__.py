"""Networks that declare their layer groups, by name.

A shape of three numbers is that of an image, (channels, height, width); of one number, the length of a text; of two,
that of a row of a table, (2, columns).
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import nn

from fedham_flwr.core.errors import UserError
from fedham_flwr.core.seeding import derive
from fedham_flwr.models.char_transformer import CharTransformer, CharTransformerSettings
from fedham_flwr.models.cnn import CNN, DigitsCNN, TransferCNN, TransferCNNSettings
from fedham_flwr.models.grafts import GraftSettings
from fedham_flwr.models.lenet import LeNet, LeNetBN
from fedham_flwr.models.mlp import MLP, MLPSettings
from fedham_flwr.models.transformer import Transformer
from fedham_flwr.models.vit import ViT, ViTSettings

MODELS: dict[str, type[CNN | LeNet | TransferCNN | Transformer | MLP]] = {
    "cnn": CNN,
    "digits-cnn": DigitsCNN,
    "lenet": LeNet,
    "lenet-bn": LeNetBN,
    "transfer-cnn": TransferCNN,
    "vit": ViT,
    "char-transformer": CharTransformer,
    "mlp": MLP,
}


@dataclass(frozen=True)
class NetworkSettings:
    """What building a network needs to know besides its name, the data's shape and the number of classes.

    Attributes:
        vit: settings of that network.
        char_transformer: settings of that network.
        personal_head: whether the method needs a second head besides the shared one; only Transformers have it.
        transfer_cnn: settings of that network.
        graft: which block is grafted onto it, where and how; only convolutional networks have places for one.
        mlp: settings of that network.
    """

    vit: ViTSettings = field(default_factory=ViTSettings)
    char_transformer: CharTransformerSettings = field(default_factory=CharTransformerSettings)
    personal_head: bool = False
    transfer_cnn: TransferCNNSettings = field(default_factory=TransferCNNSettings)
    graft: GraftSettings = field(default_factory=GraftSettings)
    mlp: MLPSettings = field(default_factory=MLPSettings)


def resolve(name: str, shape: tuple[int, ...]) -> str:
    """The model's name, `auto` replaced by the one that fits.

    That is mlp for tables, char-transformer for texts, digits-cnn for images below 16 pixels, and cnn for others.
    """
    if name != "auto":
        return name
    if len(shape) < 3:
        return "mlp" if len(shape) == 2 else "char-transformer"
    return "digits-cnn" if min(shape[1:]) < CNN.smallest else "cnn"


def build(
    name: str,
    shape: tuple[int, ...],
    classes: int,
    seed: int,
    how: NetworkSettings = NetworkSettings(),
) -> nn.Module:
    """A network with its first parameters, which depend on the seed alone: every client and method starts there.

    Args:
        name: a key of `MODELS`, or "auto".
        shape: of one sample: (channels, height, width) of an image, (length,) of a text, (2, columns) of a table.
        classes: number of outputs; of a text, the characters there can be.
        seed: the run's seed.
        how: the networks' settings. Neither a personal head, which starts at zero, nor a graft changes another
            parameter.

    Raises:
        UserError: the network is not for such data, has no such head, or no such place for a graft.
    """
    name = resolve(name, shape)
    _check(name, shape, how)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(derive(seed, "init"))
        if name == "vit":
            return ViT(shape, classes, how.vit, how.personal_head)
        if name == "char-transformer":
            return CharTransformer(shape, classes, how.char_transformer, how.personal_head)
        if name == "mlp":
            return MLP(shape, classes, how.mlp)
        model = _convolutional(name, shape, classes, how)
        model.graft(how.graft)
        return model


def _convolutional(name: str, shape: tuple[int, ...], classes: int, how: NetworkSettings) -> CNN | LeNet | TransferCNN:
    if name == "transfer-cnn":
        return TransferCNN(shape, classes, how.transfer_cnn)
    model = MODELS[name]
    assert issubclass(model, CNN | LeNet)
    return model(shape, classes)


def _check(name: str, shape: tuple[int, ...], how: NetworkSettings) -> None:
    model = MODELS[name]
    _check_kind(name, shape)
    if issubclass(model, Transformer | MLP) and how.graft.kind != "none":
        raise UserError(
            f'fedtransfer.attention="{how.graft.kind}" is grafted behind a layer of a convolutional network, and '
            f'model="{name}" has no place for it: wanted fedtransfer.attention="none" or a convolutional network'
        )
    if issubclass(model, Transformer):
        return
    if how.personal_head:
        raise UserError(
            f'fedtp.head="fedrod" gives a Transformer a second head, and model="{name}" is none: '
            'try model="vit" for images or model="char-transformer" for text'
        )
    if issubclass(model, MLP):
        return
    smallest = how.transfer_cnn.smallest if issubclass(model, TransferCNN) else model.smallest
    if min(shape[1:]) < smallest:
        raise UserError(
            f'model="{name}" needs images of at least {smallest} x {smallest} pixels, and the data set '
            f'has {shape[1]} x {shape[2]}: try model="auto"'
        )


def _check_kind(name: str, shape: tuple[int, ...]) -> None:
    dimensions = {"char-transformer": 1, "mlp": 2}.get(name, 3)
    if dimensions == len(shape):
        return
    what = {1: "text", 2: "tables", 3: "images"}[dimensions]
    if len(shape) == 3:
        size = " x ".join(map(str, shape[1:]))
        raise UserError(f'model="{name}" is for {what}, and the data set is images of {size} pixels: try model="auto"')
    given = f"text, {shape[0]} characters a sample" if len(shape) == 1 else f"a table of {shape[1]} columns"
    raise UserError(f'model="{name}" is for {what}, and the data set is {given}: try model="{resolve("auto", shape)}"')
