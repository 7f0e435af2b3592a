"""Augmentation of training batches: shifts and mirrors of our own, torchvision's transforms, or a user's own.

torchvision's transforms and a user's see images in 0..1, as torchvision's are made for, and draw from torch's global
generator, which local training seeds from the client's stream.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fedham_flwr.core.errors import UserError, first_line
from fedham_flwr.core.imports import is_path, load_function
from fedham_flwr.data.batches import Kind
from fedham_flwr.training.local import LocalTraining

AUGMENTATIONS = ("shift-flip", "crop-flip", "randaugment", "trivialaugment", "color")
"""The built-in ones. The last four are torchvision's, with its defaults, image by image."""
JITTER = (0.4, 0.4, 0.4, 0.1)
"""Of color: how far brightness, contrast, saturation and hue go, the values of SimCLR at half its strength."""

Augmentation = Callable[[Tensor, torch.Generator], Tensor]
"""What becomes of a batch, given the client's generator."""


def make(training: LocalTraining, kind: Kind) -> Augmentation:
    """What augments a batch in training.

    Args:
        training: whether, and how.
        kind: of the data.

    Raises:
        UserError: data of this kind cannot be augmented so, or the import path leads to no function.
    """
    if not training.augment:
        return lambda batch, _: batch
    name = training.augmentation
    if kind in ("text", "tokens") or (kind != "image" and not is_path(name)):
        what = {"table": "a table", "array": "arrays of numbers", "tokens": "text"}.get(kind, kind)
        does = "shifts and mirrors" if name == "shift-flip" else "changes"
        raise UserError(f"augment is true, but it {does} images, and the data set is {what}; set it false.")
    if name == "shift-flip":
        return shift_flip
    transform = _own(training) if is_path(name) else _by_image(name)
    return lambda batch, _: _in_range(transform, batch, kind == "image")


def _in_range(transform: Callable[[Tensor], Tensor], batch: Tensor, image: bool) -> Tensor:
    """What a transform of images in 0..1, or of arrays as they are, makes of a batch as a network gets it."""
    if not image:
        return transform(batch)
    changed = transform(batch.add(1).div_(2))
    return changed.mul(2).sub_(1).contiguous(memory_format=torch.channels_last)


def _by_image(name: str) -> Callable[[Tensor], Tensor]:
    """One of torchvision's, which draws anew for each image of a batch."""
    from torchvision.transforms import v2

    made: dict[str, Callable[[int, int], Any]] = {
        "crop-flip": lambda h, w: v2.Compose([v2.RandomResizedCrop((h, w), antialias=True), v2.RandomHorizontalFlip()]),
        "randaugment": lambda *_: v2.RandAugment(),
        "trivialaugment": lambda *_: v2.TrivialAugmentWide(),
        "color": lambda *_: v2.ColorJitter(*JITTER),
    }

    def changed(batch: Tensor) -> Tensor:
        transform = made[name](*batch.shape[2:])
        return torch.stack([transform(image) for image in batch])

    return changed


def _own(training: LocalTraining) -> Callable[[Tensor], Tensor]:
    """The user's, called with a whole batch."""
    name = training.augmentation
    wanted = "a function of a batch of inputs"
    function = load_function("augmentation", name, training.augmentation_settings, wanted)

    def checked(batch: Tensor) -> Tensor:
        changed = function(batch)
        if not isinstance(changed, Tensor) or changed.shape != batch.shape or changed.dtype != batch.dtype:
            same = isinstance(changed, Tensor)
            found = f"{changed.dtype} {list(changed.shape)}" if same else type(changed).__name__
            raise UserError(
                f'augmentation="{name}" makes {found} of a batch of {batch.dtype} {list(batch.shape)}, and wanted is '
                "the same shape and type"
            )
        return changed

    return checked


def check(training: LocalTraining, kind: Kind, shape: tuple[int, ...]) -> None:
    """Try an augmentation that is not our own on a batch of zeros.

    Args:
        training: which augmentation.
        kind: of the data.
        shape: of a sample.

    Raises:
        UserError: data of this kind cannot be augmented so, the import path leads to no function, or it cannot be
            called with such a batch.
    """
    change = make(training, kind)
    if not training.augment or training.augmentation == "shift-flip":
        return
    try:
        with torch.random.fork_rng(devices=[]):
            change(torch.zeros(2, *shape), torch.Generator())
    except UserError:
        raise
    except Exception as error:  # whatever the user's own code or torchvision's raises
        raise UserError(
            f'augmentation="{training.augmentation}" cannot be called with a batch of shape {[2, *shape]}: '
            f"{type(error).__name__}: {first_line(error)}"
        ) from error


def shift_flip(batch: Tensor, generator: torch.Generator, pad: int = 4) -> Tensor:
    """Shift each image by up to `pad` pixels in each direction, and mirror every second one, at random.

    What is shifted in is -1, the minimum of the scaled range: black. Small images are shifted by an eighth of their
    height at most, but by 1 pixel at least: 4 pixels of 32, 1 of 8.

    Args:
        batch: float32 [b, C, H, W] in -1..1, as `batches.to_float` gives it.
        generator: on the CPU; draws rows, then columns, then mirrorings.
        pad: pixels, at least 0.

    Returns:
        A new tensor like `batch`, in channels_last memory.
    """
    b, channels, height, width = batch.shape
    pad = min(pad, max(1, height // 8))
    down, right = torch.randint(0, 2 * pad + 1, (2, b, 1), generator=generator)
    mirrored = torch.randint(0, 2, (b, 1), generator=generator, dtype=torch.bool)
    rows = down + torch.arange(height)  # [b, H], of the padded image
    columns = right + torch.where(mirrored, torch.arange(width).flip(0), torch.arange(width))  # [b, W]
    padded = torch.nn.functional.pad(batch.permute(0, 2, 3, 1), (0, 0, pad, pad, pad, pad), value=-1.0)
    # One flat list of pixel numbers: picking whole pixels is 3 times as fast as indexing with three arrays.
    first = torch.arange(b)[:, None, None] * padded.shape[1]
    pixels = (first + rows[:, :, None]) * padded.shape[2] + columns[:, None, :]
    picked = padded.reshape(-1, channels).index_select(0, pixels.flatten().to(batch.device))
    return picked.view(b, height, width, channels).permute(0, 3, 1, 2)
