"""Blocks that can be grafted onto a network: CBAM, squeeze-and-excitation, and a bottleneck adapter.

Shape letters: b batch, c channels, h height, w width.

Sources: Woo et al., "CBAM: Convolutional Block Attention Module", ECCV 2018, authors' code; Hu et al.,
"Squeeze-and-Excitation Networks", CVPR 2018; Houlsby et al., "Parameter-Efficient Transfer Learning for NLP", ICML
2019, whose adapter stands here over the channels of a feature map.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import batch_norm

from fedham_flwr.models import kernels


def bottleneck(channels: int, reduction: int, bias: bool = True) -> nn.Sequential:
    """Linear c -> max(1, c // reduction), ReLU, linear back to c.

    Args:
        channels: c.
        reduction: how many times narrower the middle is, at least 1.
        bias: whether both layers have biases.
    """
    middle = max(1, channels // reduction)
    return nn.Sequential(nn.Linear(channels, middle, bias=bias), nn.ReLU(), nn.Linear(middle, channels, bias=bias))


class Neutral(nn.Module):
    """A block that can be inserted without changing what the network says.

    Attributes:
        silent: the layers of which weight and bias are then zero.
    """

    silent: tuple[str, ...] = ("mlp.2",)

    def neutral_(self) -> None:
        """Make every map exactly 1/2, in training too, or the block the identity; zeros still have a gradient."""
        for layer in self.silent:
            for parameter in self.get_submodule(layer).parameters():
                nn.init.zeros_(parameter)


class CBAM(Neutral):
    """The convolutional block attention module: what to look at (channels), then where (pixels).

    M_c(F) = sigmoid(MLP(avgpool F) + MLP(maxpool F)), F' = M_c(F) F,
    M_s(F') = sigmoid(BN(conv7x7([max_c F'; mean_c F']))), F'' = M_s(F') F'.

    2,284 parameters for 128 channels, 2,146 without the MLP's biases and the normalisation.

    Args:
        channels: c.
        reduction: the MLP's middle has max(1, c // reduction) neurons.
        kernel: side of the spatial convolution, odd.
        bias: whether the MLP has biases; the convolution has none.
        batch_norm: whether the convolution's output is normalised, as in the authors' code.
    """

    silent = ("mlp.2", "norm")

    def __init__(
        self, channels: int, reduction: int = 16, kernel: int = 7, bias: bool = True, batch_norm: bool = True
    ) -> None:
        super().__init__()
        self.mlp = bottleneck(channels, reduction, bias)
        self.conv = nn.Conv2d(2, 1, kernel, padding=kernel // 2, bias=False)
        self.norm = nn.BatchNorm2d(1, eps=1e-5, momentum=0.01) if batch_norm else None
        if not batch_norm:
            self.silent = ("mlp.2", "conv")

    def channel_map(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c 1 1"]:
        """M_c, in (0, 1): how much of each channel is let through."""
        pooled = x.mean((2, 3)), x.amax((2, 3))
        if kernels.is_stacked():  # samples first, as the clients' weights want them
            return torch.sigmoid(self.mlp(pooled[0]) + self.mlp(pooled[1]))[:, :, None, None]
        return torch.sigmoid(self.mlp(torch.stack(pooled)).sum(0))[:, :, None, None]  # one product for both

    def spatial_map(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b 1 h w"]:
        """M_s, in (0, 1): how much of each pixel is let through."""
        scores = self.conv(torch.cat([x.amax(1, keepdim=True), x.mean(1, keepdim=True)], dim=1))
        return torch.sigmoid(scores if self.norm is None else self._normalised(self.norm, scores))

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """F'': the features, each at most as large as it was."""
        x = self.channel_map(x) * x
        return self.spatial_map(x) * x

    @staticmethod
    def _normalised(norm: nn.BatchNorm2d, scores: Float[Tensor, "b 1 h w"]) -> Float[Tensor, "b 1 h w"]:
        if norm.training and scores.numel() == 1:
            # The variance of one number is none, and torch raises: an epoch's last batch can be one sample.
            return batch_norm(scores, norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=norm.eps)
        normalised: Tensor = norm(scores)
        return normalised


class SqueezeExcitation(Neutral):
    """sigmoid(MLP(avgpool F)) F: the channel half of CBAM with one pooling. 2,184 parameters for 128 channels.

    Args:
        channels: c.
        reduction: the MLP's middle has max(1, c // reduction) neurons.
    """

    def __init__(self, channels: int, reduction: int = 16) -> None:
        super().__init__()
        self.mlp = bottleneck(channels, reduction)

    def channel_map(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c 1 1"]:
        """How much of each channel is let through, in (0, 1)."""
        return torch.sigmoid(self.mlp(x.mean((2, 3))))[:, :, None, None]

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """The features, each at most as large as it was."""
        return self.channel_map(x) * x


class Adapter(Neutral):
    """x + up(relu(down x)) over the channels, at each pixel. 2,184 parameters for 128 channels.

    Args:
        channels: c.
        reduction: the middle has max(1, c // reduction) neurons.
    """

    def __init__(self, channels: int, reduction: int = 16) -> None:
        super().__init__()
        self.mlp = bottleneck(channels, reduction)

    def forward(self, x: Float[Tensor, "b c *hw"]) -> Float[Tensor, "b c *hw"]:
        """Features of a map, or of a vector per sample, moved by what the bottleneck says."""
        # With its channels last a map in channels_last memory is a plain matrix, and nothing is copied.
        moved: Tensor = self.mlp(x.movedim(1, -1))
        return x + moved.movedim(-1, 1)
