"""Training images changed at random: shifts and mirrorings of our own, or transforms of torchvision's."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from fedham_flwr.core.errors import UserError
from fedham_flwr.data.batches import Kind


def check_augment(kind: Kind) -> None:
    """Images can be augmented, nothing else.

    Raises:
        UserError: the data are of another kind.
    """
    if kind != "image":
        what = {"table": "a table", "array": "arrays of numbers"}.get(kind, kind)
        raise UserError(f"augment is true, but it shifts and mirrors images, and the data set is {what}; set it false.")


def augmented(batch: Tensor, generator: torch.Generator, kind: str) -> Tensor:
    """A batch of images changed at random.

    torchvision's transforms draw from torch's global generator, which training seeds from the client's stream.

    Args:
        batch: float32 [b, C, H, W] in -1..1.
        generator: the client's, for `shift-flip`.
        kind: shift-flip (ours), crop-flip, randaugment, trivialaugment or color (torchvision's, image by image).
    """
    if kind == "shift-flip":
        return augment(batch, generator)
    transform = _transform(kind, batch.shape[-2:])
    pixels = batch.add(1.0).mul(127.5).round().clamp(0, 255).to(torch.uint8)
    changed = torch.stack([transform(image) for image in pixels])
    return changed.to(torch.float32).div_(127.5).sub_(1.0).contiguous(memory_format=torch.channels_last)


@lru_cache(maxsize=8)
def _transform(kind: str, size: tuple[int, int]) -> Any:
    from torchvision.transforms import v2

    if kind == "crop-flip":
        padding = min(4, max(1, size[0] // 8))
        return v2.Compose([v2.RandomCrop(size, padding=padding), v2.RandomHorizontalFlip()])
    if kind == "color":
        return v2.ColorJitter(brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1)
    return v2.RandAugment() if kind == "randaugment" else v2.TrivialAugmentWide()


def augment(batch: Tensor, generator: torch.Generator, pad: int = 4) -> Tensor:
    """Shift each image by up to `pad` pixels in each direction, and mirror every second one, at random.

    What is shifted in is -1, the minimum of the scaled range: black. Small images are shifted by an eighth of their
    height at most, but by 1 pixel at least: 4 pixels of 32, 1 of 8.

    Args:
        batch: float32 [b, C, H, W] in -1..1, as `to_float` gives it.
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
