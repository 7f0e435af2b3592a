"""The kinds of data, and how samples as they are stored become a network's inputs and targets.

| kind | stored | inputs | targets | `shape` |
| --- | --- | --- | --- | --- |
| image | uint8 [N, H, W, C] and int64 [N] | float32 [b, C, H, W] in -1..1 | int64 [b], classes | (C, H, W) |
| text | uint8 [N, T + 1], codes of characters | int64 [b, T] | int64 [b, T], the next characters | (T,) |
| table | float32 [N, F], NaN: missing; int64 [N] | float32 [b, 2, F], values and gaps | int64 [b], classes | (2, F) |
| array | float32 [N, ...] | the same | int64 [b], classes | (...) |

A kind is told by the number of dimensions and the type of its stored features, but for arrays, which are declared. The
labels of all but texts may also be uint8 or bool [N, k], for k labels of which each sample has some, or float32 [N] or
[N, k], for values: their type tells what is to be learned, the target.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from fedham_flwr.core.errors import UserError

Kind = Literal["image", "text", "table", "array"]
Target = Literal["class", "multi-label", "value", "next-token"]
"""What is to be learned: one of K classes, which of k labels, k numbers (regression), or each next character."""


def kind_of(features: Tensor) -> Kind:
    """The kind of data that features are, as they are stored (any number of samples).

    Raises:
        ValueError: they are of no kind.
    """
    if features.dim() == 4 and features.dtype == torch.uint8:
        return "image"
    if features.dim() == 2:
        return "table" if features.is_floating_point() else "text"
    raise ValueError(f"features of {features.dim()} dimensions and type {features.dtype} are of no known kind")


def target_of(targets: Tensor) -> Target:
    """What is to be learned, told by targets as a network is given them (any number of samples).

    Raises:
        ValueError: they are of no known kind.
    """
    dimensions = targets.dim()
    if targets.dtype == torch.int64 and dimensions in (1, 2):
        return "class" if dimensions == 1 else "next-token"
    if targets.dtype in (torch.uint8, torch.bool) and dimensions == 2:
        return "multi-label"
    if targets.dtype == torch.float32 and dimensions in (1, 2):
        return "value"
    raise ValueError(f"targets of {dimensions} dimensions and type {targets.dtype} are of no known kind")


def sample_shape(features: Tensor, kind: Kind | None = None) -> tuple[int, ...]:
    """One sample as a network sees it: (C, H, W) of an image, (T,) of a text, (2, F) of a row of a table.

    Args:
        features: as they are stored.
        kind: of the data; by default told by the features.
    """
    kind = kind or kind_of(features)
    if kind == "array":
        return tuple(features.shape[1:])
    if kind == "text":
        return (features.shape[1] - 1,)
    if kind == "table":
        return 2, features.shape[1]
    height, width, channels = features.shape[1:]
    return channels, height, width


def inputs_and_targets(features: Tensor, labels: Tensor, kind: Kind | None = None) -> tuple[Tensor, Tensor]:
    """What a network is fed and what it should say, of samples as they are stored; on the device that they are on.

    Args:
        features: image: uint8 [b, H, W, C]; text: integers [b, T + 1]; table: float32 [b, F], NaN where missing; array:
            float32 [b, ...].
        labels: as stored; of a text, they say nothing.
        kind: of the data; by default told by the features.

    Returns:
        image: float32 [b, C, H, W] in -1..1 and the labels; text: int64 [b, T] twice, characters and those after them;
        table: float32 [b, 2, F] as of `with_gaps`, and the labels; array: both as they are.
    """
    kind = kind or kind_of(features)
    if kind == "array":
        return features, labels
    if kind == "text":
        return features[:, :-1].long(), features[:, 1:].long()
    return with_gaps(features) if kind == "table" else to_float(features), labels


def check_augment(kind: Kind) -> None:
    """Images can be augmented, nothing else.

    Raises:
        UserError: the data are of another kind.
    """
    if kind != "image":
        what = {"table": "a table", "array": "arrays of numbers"}.get(kind, kind)
        raise UserError(f"augment is true, but it shifts and mirrors images, and the data set is {what}; set it false.")


def with_gaps(rows: Tensor) -> Tensor:
    """float32 [b, F], NaN where a value is missing -> [b, 2, F]: the values with 0 for NaN, then 1 where it was NaN."""
    return torch.stack([rows.nan_to_num(nan=0.0), rows.isnan().to(rows.dtype)], dim=1)


def to_float(batch: Tensor) -> Tensor:
    """uint8 [b, H, W, C] in 0..255 -> float32 [b, C, H, W] in -1..1, in channels_last memory (as it lies already)."""
    return batch.permute(0, 3, 1, 2).to(torch.float32).div_(127.5).sub_(1.0)


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
