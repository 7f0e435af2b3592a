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


def with_gaps(rows: Tensor) -> Tensor:
    """float32 [b, F], NaN where a value is missing -> [b, 2, F]: the values with 0 for NaN, then 1 where it was NaN."""
    return torch.stack([rows.nan_to_num(nan=0.0), rows.isnan().to(rows.dtype)], dim=1)


def to_float(batch: Tensor) -> Tensor:
    """uint8 [b, H, W, C] in 0..255 -> float32 [b, C, H, W] in -1..1, in channels_last memory (as it lies already)."""
    return batch.permute(0, 3, 1, 2).to(torch.float32).div_(127.5).sub_(1.0)
