"""The layers of many clients at once: each takes a folded batch, and the clients' weights stacked.

A folded batch has the samples of m clients one client after the other, b of each: [m * b, ...]. Stacked weights have
the clients first: [m, ...]. Letters: c channels, o output channels, h height, w width, k kernel side.

A convolution has three ways, and shapes alone decide which is taken, so that a run does not depend on the clock: a
product of patches where images and channels are few, one convolution after the other for the first layer of large
images, and a grouped convolution else (`benchmarks/stacked_layers.py` measures them).
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from fedham_flwr.training.modes import ONE_VALUE

FEW_CHANNELS = 8
"""Below this a grouped convolution is slow on a processor."""
FEW_PIXELS = 2000
"""Output pixels of one client's batch up to which the patches are written out."""


def linear(
    x: Float[Tensor, "mb *rest i"], weight: Float[Tensor, "m o i"], bias: Float[Tensor, "m o"] | None = None
) -> Float[Tensor, "mb *rest o"]:
    """X W^T + bias, client by client."""
    rows = x.reshape(len(weight), -1, x.shape[-1])
    out: Tensor = _Linear.apply(*_cast(rows, weight, bias))
    return out.view(*x.shape[:-1], weight.shape[1])


class _Linear(torch.autograd.Function):
    """Gradients of the weights lie as the weights do, which fused optimisers take for granted."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(rows, weight)
        if bias is None:
            return torch.bmm(rows, weight.transpose(1, 2))
        return torch.baddbmm(bias.unsqueeze(1), rows, weight.transpose(1, 2))

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor | None, ...]:
        rows, weight = ctx.saved_tensors
        slope = slopes[0]
        of_rows = torch.bmm(slope, weight) if ctx.needs_input_grad[0] else None
        of_weight = torch.bmm(slope.transpose(1, 2), rows) if ctx.needs_input_grad[1] else None
        return of_rows, of_weight, slope.sum(1) if ctx.needs_input_grad[2] else None


def conv2d(
    x: Float[Tensor, "mb c h w"],
    weight: Float[Tensor, "m o c2 k1 k2"],
    bias: Float[Tensor, "m o"] | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Float[Tensor, "mb o h2 w2"]:
    """Torch's convolution, client by client; arguments as torch's."""
    clients, out_channels = weight.shape[:2]
    plain = groups == 1 and _all(stride, 1) and _all(dilation, 1) and not isinstance(padding, str)
    if x.shape[1] >= FEW_CHANNELS:
        batch = len(x) // clients
        side_by_side = x.view(clients, batch, *x.shape[1:]).transpose(0, 1).reshape(batch, -1, *x.shape[2:])
        found = functional.conv2d(
            side_by_side,
            weight.flatten(0, 1),
            None if bias is None else bias.flatten(),
            stride,
            padding,
            dilation,
            groups * clients,
        )
        found = found.view(batch, clients, out_channels, *found.shape[2:]).transpose(0, 1)
        return found.reshape(len(x), out_channels, *found.shape[3:])
    if plain and len(x) // clients * x.shape[2] * x.shape[3] <= FEW_PIXELS:
        rows, columns = (padding, padding) if isinstance(padding, int) else padding
        made: Tensor = _Patches.apply(*_cast(x, weight, bias), rows, columns)
        return made
    biases = [None] * clients if bias is None else bias.unbind(0)
    parts = zip(x.chunk(clients), weight.unbind(0), biases, strict=True)
    return torch.cat([functional.conv2d(part, w, b, stride, padding, dilation, groups) for part, w, b in parts])


def conv1d(
    x: Float[Tensor, "mb c t"],
    weight: Float[Tensor, "m o c2 k"],
    bias: Float[Tensor, "m o"] | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Float[Tensor, "mb o t2"]:
    """Torch's convolution over time, client by client, as one of images of one row; arguments as torch's."""
    steps, apart = (each if isinstance(each, int) else each[0] for each in (stride, dilation))
    margin = padding if isinstance(padding, str) else (0, padding if isinstance(padding, int) else padding[0])
    return conv2d(x[:, :, None], weight[..., None, :], bias, (1, steps), margin, (1, apart), groups)[:, :, 0]


class _Patches(torch.autograd.Function):
    """A convolution of stride 1 as a product of its patches, written out in channels_last order, with the weights."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, rows: int, columns: int) -> Tensor:
        clients, out_channels, channels, high, wide = weight.shape
        padded = functional.pad(x.permute(0, 2, 3, 1), (0, 0, columns, columns, rows, rows)).contiguous()
        height, width = padded.shape[1] - high + 1, padded.shape[2] - wide + 1
        image, row, column, channel = padded.stride()
        patches = padded.as_strided(
            (len(x), height, width, high, wide, channels), (image, row, column, row, column, channel)
        ).reshape(clients, -1, high * wide * channels)
        columns_first = weight.permute(0, 3, 4, 2, 1).reshape(clients, -1, out_channels)
        out = torch.bmm(patches, columns_first)
        if bias is not None:
            out += bias.unsqueeze(1)
        ctx.save_for_backward(patches, columns_first)
        ctx.sizes = (x.shape, weight.shape, rows, columns, height, width, bias is not None)
        return out.view(len(x), height, width, out_channels).permute(0, 3, 1, 2)

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor | None, ...]:
        patches, columns_first = ctx.saved_tensors
        shape, (clients, out_channels, channels, high, wide), rows, columns, height, width, biased = ctx.sizes
        slope = slopes[0].permute(0, 2, 3, 1).reshape(clients, -1, out_channels)
        of_weight = torch.bmm(patches.transpose(1, 2), slope)
        of_weight = of_weight.view(clients, high, wide, channels, out_channels).permute(0, 4, 3, 1, 2).contiguous()
        of_x = None
        if ctx.needs_input_grad[0]:
            each = torch.bmm(slope, columns_first.transpose(1, 2))
            each = each.view(shape[0], height, width, high, wide, channels)
            whole = each.new_zeros(shape[0], shape[2] + 2 * rows, shape[3] + 2 * columns, channels)
            for i in range(high):
                for j in range(wide):
                    whole[:, i : i + height, j : j + width] += each[:, :, :, i, j]
            of_x = whole[:, rows : rows + shape[2], columns : columns + shape[3]].permute(0, 3, 1, 2)
        return of_x, of_weight, slope.sum(1) if biased else None, None, None


def batch_norm(
    x: Float[Tensor, "mb c *pixels"],
    mean: Float[Tensor, "m c"] | None,
    variance: Float[Tensor, "m c"] | None,
    weight: Float[Tensor, "m c"] | None,
    bias: Float[Tensor, "m c"] | None,
    training: bool,
    momentum: float,
    eps: float,
    clients: int,
    real: Float[Tensor, "m b"] | None = None,
) -> Float[Tensor, "mb c *pixels"]:
    """Torch's batch normalisation, client by client; running statistics are changed in place.

    Args:
        x: a folded batch.
        mean: running means.
        variance: running variances.
        weight: factors.
        bias: summands.
        training: by the batch's statistics, which go into the running ones.
        momentum: of the running statistics.
        eps: added to variances.
        clients: m.
        real: 1 for a sample, 0 for what fills up the batch of a client that has fewer; by default all are samples.
    """
    batch, channels = len(x) // clients, x.shape[1]
    if not training or real is None:
        side_by_side = x.view(clients, batch, channels, -1).transpose(0, 1).reshape(batch, clients * channels, -1)
        flat_mean, flat_variance, flat_weight, flat_bias = (
            None if part is None else part.flatten() for part in (mean, variance, weight, bias)
        )
        found = functional.batch_norm(
            side_by_side, flat_mean, flat_variance, flat_weight, flat_bias, training, momentum, eps
        )
        found = found.view(batch, clients, channels, -1).transpose(0, 1)
        return found.reshape(x.shape)
    parts, counted = x.view(clients, batch, channels, -1), real[:, :, None, None]
    count = real.sum(1, keepdim=True) * parts.shape[3]
    if bool((count <= 1).any()):
        raise ValueError(f"{ONE_VALUE} when training")  # as torch does
    average = (parts * counted).sum((1, 3)) / count
    centred = parts - average[:, None, :, None]
    spread = (centred.square() * counted).sum((1, 3)) / count
    if mean is not None and variance is not None:
        with torch.no_grad():
            mean.lerp_(average, momentum)
            variance.lerp_(spread * count / (count - 1), momentum)
    scale = (spread + eps).rsqrt()
    scale = scale if weight is None else scale * weight
    out = centred * scale[:, None, :, None]
    if bias is not None:
        out = out + bias[:, None, :, None]
    return out.view(x.shape)


def affine(normed: Tensor, weight: Tensor | None, bias: Tensor | None, clients: int, channels: bool) -> Tensor:
    """What is normalised times factors plus summands, client by client.

    Args:
        normed: a folded batch: [m b, ..., *d] of layer normalisation, [m b, c, ...] of group normalisation.
        weight: [m, *d] or [m, c].
        bias: as weight.
        clients: m.
        channels: whether factors are of channels, the second dimension.
    """
    for part, add in ((weight, False), (bias, True)):
        if part is None:
            continue
        if channels:
            shaped = part.view(clients, 1, -1, 1)
            apart = normed.view(clients, len(normed) // clients, normed.shape[1], -1)
        else:
            shaped = part.view(clients, 1, -1)
            apart = normed.view(clients, -1, shaped.shape[-1])
        normed = (apart + shaped if add else apart * shaped).view(normed.shape)
    return normed


def embedding(index: Tensor, weight: Float[Tensor, "m v d"]) -> Tensor:
    """The rows of each client's own table: index int64 [m b, ...] -> [m b, ..., d]."""
    first = torch.arange(len(weight), device=index.device) * weight.shape[1]
    apart = index.view(len(weight), -1) + first[:, None]
    return functional.embedding(apart, weight.flatten(0, 1)).view(*index.shape, weight.shape[2])


def _cast(*tensors: Tensor | None) -> tuple[Tensor | None, ...]:
    """Tensors in the type of autocast, where that is on: it does not see into functions of our own."""
    kind = next(tensor.device.type for tensor in tensors if tensor is not None)
    if not torch.is_autocast_enabled(kind):
        return tensors
    return tuple(None if tensor is None else tensor.to(torch.get_autocast_dtype(kind)) for tensor in tensors)


def _all(given: Any, wanted: int) -> bool:
    return all(value == wanted for value in ((given,) if isinstance(given, int) else given))
