"""torchvision's classification networks, by `torchvision:<name>`, for images of any size and number of channels.

Nothing is fetched: weights come from a file of yours.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from torch import Tensor, nn

from fedham_flwr.core.errors import UserError, first_line

log = logging.getLogger("fedham_flwr")

TORCHVISION = "torchvision:"
"""What the names of torchvision's networks begin with."""
SMALL = 64
"""Images of fewer pixels a side get the small stem."""
COUNTER = "num_batches_tracked"
"""Of batch normalisation: an integer that changes nothing."""
GROUPS = 32
"""Of group normalisation, as in Wu and He, "Group Normalization", ECCV 2018; fewer where they do not divide evenly."""


@dataclass(frozen=True)
class TorchvisionSettings:
    """Settings under `torchvision.`.

    Attributes:
        stem: of ResNets: small (a 3x3 convolution without stride, and no pooling), original (7x7 with stride 2, and
            pooling), or auto: small for images below 64 pixels. Other networks keep theirs.
        norm: batch, or group in place of batch normalisation, which needs no running statistics.
        weights: a safetensors file with a state dict; empty: random.
    """

    stem: Literal["auto", "small", "original"] = "auto"
    norm: Literal["batch", "group"] = "batch"
    weights: str = ""


def build_torchvision(name: str, shape: tuple[int, ...], outputs: int, settings: TorchvisionSettings) -> nn.Module:
    """One of torchvision's classification networks.

    Args:
        name: `torchvision:<name>`.
        shape: (channels, height, width) of an image.
        outputs: number of classes.
        settings: stem, normalisation and weights.

    Raises:
        UserError: there is no such network, the data are no images, or the weights do not fit.
    """
    import torchvision

    model = _untrained(name, shape, outputs)
    small = settings.stem == "small" or (settings.stem == "auto" and max(shape[1:]) < SMALL)
    if small and isinstance(model, torchvision.models.ResNet):
        model.conv1 = nn.Conv2d(3, model.conv1.out_channels, 3, padding=1, bias=False)
        nn.init.kaiming_normal_(model.conv1.weight, mode="fan_out", nonlinearity="relu")
        model.maxpool = nn.Identity()
    if settings.norm == "group":
        _replace_norms(model)
    tensors = _read(Path(settings.weights).expanduser()) if settings.weights else {}
    first = next(key for key, module in model.named_modules() if isinstance(module, nn.Conv2d))
    fits = f"{first}.weight" in tensors and tensors[f"{first}.weight"].shape[1:2] == shape[:1]
    if fits:  # the weights are of such images already
        _take_channels(model, first, shape[0])
    if tensors:
        _load(name, model, tensors, settings.weights)
    if not fits:
        _take_channels(model, first, shape[0])
    return model


def _untrained(name: str, shape: tuple[int, ...], outputs: int) -> nn.Module:
    """The network as torchvision makes it, for images of three channels."""
    import torchvision

    wanted = name.removeprefix(TORCHVISION)
    known = torchvision.models.list_models(module=torchvision.models)
    if wanted not in known:
        import difflib

        near = difflib.get_close_matches(wanted, known, n=1)
        advice = f"did you mean {TORCHVISION}{near[0]}?" if near else "wanted one of torchvision.models.list_models()"
        raise UserError(f'model="{name}": torchvision has no classification network {wanted}: {advice}')
    if len(shape) != 3:
        raise UserError(f'model="{name}" is for images, and a sample has the shape {shape}: try model="auto"')
    extra: dict[str, Any] = {"init_weights": True} if wanted in ("googlenet", "inception_v3") else {}
    if extra:
        extra["aux_logits"] = False
    if wanted.startswith("vit_"):
        extra["image_size"] = shape[1]
    try:
        model: nn.Module = torchvision.models.get_model(wanted, weights=None, num_classes=outputs, **extra)
    except (ValueError, AssertionError) as error:  # by AssertionError vision Transformers refuse a size
        raise UserError(
            f'model="{name}" does not fit images of {shape[1]} x {shape[2]}: {first_line(error)}'
        ) from error
    return model


def _replace_norms(model: nn.Module) -> None:
    """Group normalisation in place of every batch normalisation of feature maps."""
    for parent in list(model.modules()):
        for child, module in list(parent.named_children()):
            if isinstance(module, nn.BatchNorm2d):
                channels = module.num_features
                groups = next(g for g in range(min(GROUPS, channels), 0, -1) if channels % g == 0)
                setattr(parent, child, nn.GroupNorm(groups, channels))


def _take_channels(model: nn.Module, name: str, channels: int) -> None:
    """A first convolution, of this name, for so many channels; its weights are the mean over the three colours."""
    module = model.get_submodule(name)
    assert isinstance(module, nn.Conv2d)
    if module.in_channels == channels:
        return
    given: dict[str, Any] = {"stride": module.stride, "padding": module.padding, "dilation": module.dilation}
    given["bias"] = module.bias is not None
    new = nn.Conv2d(channels, module.out_channels, module.kernel_size, **given)  # type: ignore[arg-type]
    mean = module.weight.detach().mean(1, keepdim=True)
    new.weight.data.copy_(mean.expand_as(new.weight) * (module.in_channels / channels))
    if new.bias is not None and module.bias is not None:
        new.bias.data.copy_(module.bias.detach())
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, new)


def _load(name: str, model: nn.Module, tensors: dict[str, Tensor], path: str) -> None:
    """Take the weights of a file; a head of another size stays random, and that is said."""
    own = model.state_dict()
    counters = {key: tensor for key, tensor in own.items() if key.endswith(COUNTER)}  # that a file need not have
    tensors = counters | tensors
    head = [key for key in tensors if key in own and tensors[key].shape != own[key].shape]
    if unknown := sorted(tensors.keys() ^ own.keys()):
        raise UserError(
            f'torchvision.weights="{path}" does not fit {name}: {", ".join(unknown[:3])} is in one of them only'
        )
    last = list(own)[-1].rpartition(".")[0]
    if wrong := [key for key in head if key.rpartition(".")[0] != last]:
        raise UserError(
            f'torchvision.weights="{path}" does not fit {name}: {wrong[0]} has shape {tuple(tensors[wrong[0]].shape)}, '
            f"wanted {tuple(own[wrong[0]].shape)}"
        )
    if head:
        log.warning("the weights of %s in %s are for other outputs, and it starts at random", last, path)
    model.load_state_dict({key: own[key] if key in head else tensor for key, tensor in tensors.items()})


def _read(file: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file, which is data and never code."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not file.is_file():
        raise UserError(f'torchvision.weights="{file}": there is no such file ({file.absolute()})')
    if file.suffix != ".safetensors":
        raise UserError(
            f'torchvision.weights="{file}" is no .safetensors file: write one of a state dict with '
            "safetensors.torch.save_file"
        )
    try:
        return load_file(file)
    except (OSError, SafetensorError) as error:
        raise UserError(f'torchvision.weights="{file}" cannot be read: {first_line(error)}') from error
