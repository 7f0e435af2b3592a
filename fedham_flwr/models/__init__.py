"""Networks by name: built in, of torchvision, of a folder of the Hub's, or a user's own by its import path.

What a shape says of the data is told in `core.shapes`: of an image it is (channels, height, width).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from fedham_flwr.core.errors import UserError, described
from fedham_flwr.core.imports import call, is_path, load_object, section_of
from fedham_flwr.core.seeding import derive
from fedham_flwr.core.shapes import dimensions, sample_kind
from fedham_flwr.core.shapes import vocabulary as vocabulary_of
from fedham_flwr.models.adapters import AdapterSettings, adapt
from fedham_flwr.models.char_transformer import CharTransformer
from fedham_flwr.models.cnn import CNN, DigitsCNN, TransferCNN
from fedham_flwr.models.cnn1d import CNN1d
from fedham_flwr.models.fasttext import FastText
from fedham_flwr.models.grafts import Graftable, GraftSettings
from fedham_flwr.models.grouping import manifest_of
from fedham_flwr.models.gru import GRU
from fedham_flwr.models.heads import HeadSettings, add_parts
from fedham_flwr.models.hub import build_hub
from fedham_flwr.models.hub_folder import HUB, HubSettings
from fedham_flwr.models.kinds import AUTO, NAMED, described_data
from fedham_flwr.models.lenet import LeNet, LeNetBN
from fedham_flwr.models.mlp import MLP
from fedham_flwr.models.network import Network
from fedham_flwr.models.series_transformer import SeriesTransformer
from fedham_flwr.models.text_transformer import TextTransformer
from fedham_flwr.models.torchvision_models import TORCHVISION, TorchvisionSettings, build_torchvision
from fedham_flwr.models.vit import ViT

MODELS: dict[str, type[Network]] = {
    "digits-cnn": DigitsCNN,
    "cnn": CNN,
    "lenet": LeNet,
    "lenet-bn": LeNetBN,
    "transfer-cnn": TransferCNN,
    "vit": ViT,
    "char-transformer": CharTransformer,
    "mlp": MLP,
    "cnn1d": CNN1d,
    "gru": GRU,
    "series-transformer": SeriesTransformer,
    "fasttext": FastText,
    "text-transformer": TextTransformer,
}
NETWORKS: Mapping[str, type] = {
    **{name: kind.Settings for name, kind in MODELS.items() if kind.Settings is not None},
    "torchvision": TorchvisionSettings,
    HUB: HubSettings,
}
"""The networks that have settings of their own, and the dataclass of these."""
LARGE = 64
"""Images of more pixels a side are too large for small networks: their first fully connected layer would be huge."""
TRIAL = 2
"""Samples of the batch that a network is tried with before the first round."""


@dataclass(frozen=True)
class NetworkSettings:
    """What building a network needs to know beside its name, the data's shape and the number of outputs.

    Attributes:
        sections: the settings of networks, by the name of their section.
        head: which parts are added to the last linear layer.
        graft: which block is grafted onto it, where and how; only convolutional networks have places for one.
        adapters: those beside its linear layers, the only ones that are then trained; None for none.
    """

    sections: tuple[tuple[str, Any], ...] = ()
    head: HeadSettings = field(default_factory=HeadSettings)
    graft: GraftSettings = field(default_factory=GraftSettings)
    adapters: AdapterSettings | None = None

    @classmethod
    def of(
        cls, head: HeadSettings | None = None, graft: GraftSettings | None = None, **sections: Any
    ) -> NetworkSettings:
        """These settings, with sections by keyword: `NetworkSettings.of(mlp=MLPSettings(5, 1))`."""
        named = tuple((name.replace("_", "-"), given) for name, given in sections.items())
        return cls(named, head or HeadSettings(), graft or GraftSettings())

    def section(self, name: str) -> Any:
        """The settings of a network: as given, or its defaults; None if it has none."""
        section = "torchvision" if name.startswith(TORCHVISION) else section_of(name)
        given = dict(self.sections).get(section)
        return NETWORKS[section]() if given is None and section in NETWORKS else given


def resolve(name: str, shape: tuple[int, ...]) -> str:
    """The model's name, `auto` replaced by the one that fits.

    That is mlp for tables, cnn1d for series, char-transformer for texts, fasttext for those with labels, digits-cnn for
    images below 16 pixels, torchvision's resnet18 for those above 64, and cnn for others.
    """
    if name != "auto":
        return name
    if (kind := sample_kind(shape)) in AUTO:
        return AUTO[kind]
    if max(shape[1:]) > LARGE:
        return f"{TORCHVISION}resnet18"
    return "digits-cnn" if min(shape[1:]) < CNN.smallest else "cnn"


def build(
    name: str,
    shape: tuple[int, ...],
    outputs: int,
    seed: int,
    settings: NetworkSettings = NetworkSettings(),
) -> nn.Module:
    """A network with its first parameters, which depend on the seed alone: every client and method starts there.

    Args:
        name: a key of `MODELS`, "auto", `torchvision:<name>`, "hub" or an import path.
        shape: of one sample, as `core.shapes` has it: (channels, height, width) of an image.
        outputs: number of outputs; of a text without labels, the tokens there can be.
        seed: the run's seed.
        settings: the networks' settings. Neither parts of the head nor a graft change another parameter.

    Raises:
        UserError: the network is not for such data, ends in no linear layer where parts are added to it, or has no such
            place for a graft.
    """
    name = resolve(name, shape)
    own = settings.section(name)
    if name in MODELS:
        _check(name, shape, settings)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(derive(seed, "init"))
        if name in MODELS:
            model: nn.Module = call("model", MODELS[name], own, shape=shape, outputs=outputs)
        else:
            model = _foreign(name, shape, outputs, settings)
        if isinstance(model, Graftable):
            model.graft(settings.graft)
        if settings.head.kind or settings.head.asks:
            batches = trial_batches(shape)
            add_parts(model, manifest_of(model, batches), settings.head, batches)
        if settings.adapters is not None:
            batches = trial_batches(shape)
            adapt(model, manifest_of(model, batches), settings.adapters, batches)
        return model


def _foreign(name: str, shape: tuple[int, ...], outputs: int, settings: NetworkSettings) -> nn.Module:
    """A network of torchvision's, of the Hub's or of a user's, tried on a batch of zeros."""
    if settings.graft.kind != "none":
        asks = f'{settings.graft.setting("attention")}="{settings.graft.kind}"'
        raise UserError(
            f'model="{name}" has no place for a block, which {asks} asks for: wanted a network of this package'
        )
    own = settings.section(name)
    if name == HUB:
        model: object = build_hub(shape, outputs, own)
    else:
        model = _made(name, own, shape, outputs) if is_path(name) else build_torchvision(name, shape, outputs, own)
    if not isinstance(model, nn.Module):
        raise UserError(f'model="{name}" gives {type(model).__name__}, and wanted is a torch.nn.Module')
    _try(name, model, shape, outputs)
    if not any(param.requires_grad for param in model.parameters()):
        raise UserError(f'model="{name}" has no parameters to train')
    return model


def _made(name: str, own: object, shape: tuple[int, ...], outputs: int) -> object:
    """What a user's class or function gives."""
    found = load_object("model", name)
    if isinstance(found, nn.Module):
        raise UserError(
            f'model="{name}" is a {type(found).__name__} that is made already, and wanted is its class or a function '
            "that makes it, since each client has one"
        )
    try:
        given = {"shape": dimensions(shape), "outputs": outputs}
        return call("model", found, own, **given, vocabulary=vocabulary_of(shape))
    except UserError:
        raise
    except Exception as error:  # whatever the user's own code raises
        raise UserError(
            f'model="{name}" cannot be made with shape={shape} and outputs={outputs}: {described(error)}'
        ) from error


def _try(name: str, model: nn.Module, shape: tuple[int, ...], outputs: int) -> None:
    """Refuse a network that does not take the data, or gives other outputs."""
    model.eval()
    failed: Exception | None = None
    for batch in trial_batches(shape):
        try:
            with torch.no_grad():
                given = model(batch)
        except Exception as error:  # whatever a user's module raises
            failed = failed or error
            continue
        finally:
            model.train()
        wanted = (
            (TRIAL, *shape, outputs)
            if sample_kind(shape) == "text" and not batch.is_floating_point()
            else (TRIAL, outputs)
        )
        if not isinstance(given, Tensor) or tuple(given.shape) != wanted:
            found = tuple(given.shape) if isinstance(given, Tensor) else type(given).__name__
            raise UserError(
                f'model="{name}" gives {found} for a batch of shape {tuple(batch.shape)}, and wanted is {wanted}: a '
                "number for each sample and output"
            )
        return
    assert failed is not None
    raise UserError(
        f'model="{name}" does not take a batch of shape {(TRIAL, *dimensions(shape))}: {described(failed)}'
    ) from failed


def trial_batches(shape: tuple[int, ...]) -> list[Tensor]:
    """Batches of two samples of zeros: floats; where a sample has one dimension also tokens, as of a text."""
    kinds = {"text": (torch.float32, torch.int64), "tokens": (torch.int64,)}.get(sample_kind(shape), (torch.float32,))
    return [torch.zeros(TRIAL, *dimensions(shape), dtype=kind) for kind in kinds]


def _check(name: str, shape: tuple[int, ...], settings: NetworkSettings) -> None:
    """Refuse data, or a graft, that a built-in network is not for."""
    model, graft = MODELS[name], settings.graft
    if sample_kind(shape) not in model.kinds:
        what = " and ".join(NAMED[kind] for kind in model.kinds)
        better = "auto" if len(shape) == 3 else resolve("auto", shape)
        raise UserError(
            f'model="{name}" is for {what}, and the data set is {described_data(shape)}: try model="{better}"'
        )
    if not issubclass(model, Graftable) and graft.kind != "none":
        raise UserError(
            f'{graft.setting("attention")}="{graft.kind}" is grafted behind a layer of a convolutional network, and '
            f'model="{name}" has no place for it: wanted {graft.setting("attention")}="none" or a convolutional network'
        )
    smallest = model.least(settings.section(name))
    if len(shape) == 3 and min(shape[1:]) < smallest:
        raise UserError(
            f'model="{name}" needs images of at least {smallest} x {smallest} pixels, and the data set '
            f'has {shape[1]} x {shape[2]}: try model="auto"'
        )
