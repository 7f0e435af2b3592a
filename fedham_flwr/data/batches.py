"""The kinds of data, and how samples as they are stored become a network's inputs and targets.

| kind | stored | inputs | targets | `shape` |
| --- | --- | --- | --- | --- |
| image | uint8 [N, H, W, C] and int64 [N] | float32 [b, C, H, W] in -1..1 | int64 [b], classes | (C, H, W) |
| text | integers [N, T + 1], codes of tokens | int64 [b, T] | int64 [b, T], the next tokens | (T,) |
| tokens | integers [N, T], 0 behind a short text; int64 [N] | int64 [b, T] | int64 [b], classes | (T, V, 2, 0) |
| series | float32 [N, T, C], NaN: missing; int64 [N] | float32 [b, 2 C, T], values, gaps | int64 [b] | (2 C, T, 1, 0) |
| table | float32 [N, F], NaN: missing; int64 [N] | float32 [b, 2, F], values and gaps | int64 [b], classes | (2, F) |
| array | float32 [N, ...] | the same | int64 [b], classes | (...) |

A kind is told by the number of dimensions and the type of its stored features, but for arrays, series and tokens (texts
with labels), which are declared; shapes are explained in `core.shapes`. The labels of all but texts may also be uint8
or bool [N, k], for k labels of which each sample has some, or float32 [N] or [N, k], for values: their type tells what
is to be learned, the target.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from fedham_flwr.core import shapes

Kind = Literal["image", "text", "tokens", "series", "table", "array"]
Target = Literal["class", "multi-label", "value", "next-token"]
"""What is to be learned: one of K classes, which of k labels, k numbers (regression), or each next token."""


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


def sample_shape(features: Tensor, kind: Kind | None = None, vocabulary: int = 0) -> tuple[int, ...]:
    """One sample as a network sees it: (C, H, W) of an image, (T,) of a text, (2, F) of a row of a table.

    Args:
        features: as they are stored.
        kind: of the data; by default told by the features.
        vocabulary: V, of texts with labels.
    """
    kind = kind or kind_of(features)
    if kind == "array":
        return tuple(features.shape[1:])
    if kind == "tokens":
        return shapes.of_tokens(features.shape[1], vocabulary)
    if kind == "series":
        return shapes.of_series(features.shape[2], features.shape[1])
    if kind == "text":
        return (features.shape[1] - 1,)
    if kind == "table":
        return 2, features.shape[1]
    height, width, channels = features.shape[1:]
    return channels, height, width


def inputs_and_targets(features: Tensor, labels: Tensor, kind: Kind | None = None) -> tuple[Tensor, Tensor]:
    """What a network is fed and what it should say, of samples as they are stored; on the device that they are on.

    Args:
        features: image: uint8 [b, H, W, C]; text: integers [b, T + 1]; tokens: integers [b, T]; series: float32
            [b, T, C] and table: float32 [b, F], NaN where missing; array: float32 [b, ...].
        labels: as stored; of a text, they say nothing.
        kind: of the data; by default told by the features.

    Returns:
        image: float32 [b, C, H, W] in -1..1 and the labels; text: int64 [b, T] twice, tokens and those after them;
        tokens: int64 [b, T] and the labels; series: float32 [b, 2 C, T] as of `channels_with_gaps`, and table: float32
        [b, 2, F] as of `with_gaps`, and the labels; array: both as they are.
    """
    kind = kind or kind_of(features)
    if kind == "array":
        return features, labels
    if kind == "text":
        return features[:, :-1].long(), features[:, 1:].long()
    made = {"tokens": Tensor.long, "series": channels_with_gaps, "table": with_gaps, "image": to_float}[kind]
    return made(features), labels


def with_gaps(rows: Tensor) -> Tensor:
    """float32 [b, F], NaN where a value is missing -> [b, 2, F]: the values with 0 for NaN, then 1 where it was NaN."""
    return torch.stack([rows.nan_to_num(nan=0.0), rows.isnan().to(rows.dtype)], dim=1)


def channels_with_gaps(steps: Tensor) -> Tensor:
    """float32 [b, T, C], NaN where a value is missing -> [b, 2 C, T]: values with 0 for NaN, then 1 where it was."""
    gaps = steps.isnan()
    return torch.cat([steps.masked_fill(gaps, 0.0), gaps.to(steps.dtype)], dim=2).transpose(1, 2).contiguous()


def to_float(batch: Tensor) -> Tensor:
    """uint8 [b, H, W, C] in 0..255 -> float32 [b, C, H, W] in -1..1, in channels_last memory (as it lies already)."""
    return batch.permute(0, 3, 1, 2).to(torch.float32).div_(127.5).sub_(1.0)
