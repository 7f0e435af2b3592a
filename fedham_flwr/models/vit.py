"""The vision Transformer of FedTP. Shape letters: b batch, c channels, h height, w width, n tokens, d width, k classes.

Source: Dosovitskiy et al., "An Image is Worth 16x16 Words", ICLR 2021, in the sizes of FedTP's authors (Li et al., IEEE
TNNLS 2023, authors' code). It differs from theirs in names, and in that the last layer works for the CLS token alone,
since nothing else of it is used: the same function for less work.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from annotated_types import Gt
from jaxtyping import Float
from torch import Tensor, nn

from fedham_flwr.core.errors import UserError
from fedham_flwr.models.transformer import ClsEmbedding, PreNormLayer, Transformer, TransformerSettings


@dataclass(frozen=True)
class ViTSettings(TransformerSettings):
    """Settings under `vit.`; those that are not here are in `TransformerSettings`.

    Attributes:
        patch_size: side of a patch, which becomes one token, in pixels; it divides the image's height and width.
    """

    patch_size: Annotated[int, Gt(0)] = 4


class PatchEmbedding(ClsEmbedding):
    """Patches through one linear layer, behind a CLS token, plus positions."""

    def __init__(self, shape: tuple[int, ...], settings: ViTSettings) -> None:
        channels, height, width = shape
        patches = (height // settings.patch_size) * (width // settings.patch_size)
        super().__init__(channels * settings.patch_size**2, patches, settings)
        self._patch = settings.patch_size

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b n d"]:
        """The tokens of a batch of images."""
        return self.embed(cut(x, self._patch))


def cut(x: Float[Tensor, "b c h w"], side: int) -> Float[Tensor, "b n v"]:
    """Patches in rows from the upper left, each as its pixels in rows, each as its channels.

    Args:
        x: images; in channels_last memory this is one copy.
        side: of a patch, in pixels.
    """
    b, channels, height, width = x.shape
    rows = x.permute(0, 2, 3, 1).reshape(b, height // side, side, width // side, side * channels)
    return rows.transpose(2, 3).reshape(b, -1, side * side * channels)


class ViT(Transformer):
    """1,988,490 parameters for 3 x 32 x 32 images and 10 classes with the default settings, 2,000,100 for 100.

    Args:
        shape: (channels, height, width) of one image.
        outputs: of the head.
        settings: its own.

    Raises:
        UserError: the patches do not fit the images.
    """

    Settings: ClassVar[type | None] = ViTSettings

    def __init__(self, shape: tuple[int, ...], outputs: int, settings: ViTSettings) -> None:
        super().__init__()
        if shape[1] % settings.patch_size or shape[2] % settings.patch_size:
            raise UserError(
                f"vit.patch-size={settings.patch_size} does not divide images of {shape[1]} x {shape[2]} pixels: "
                "wanted a divisor of both"
            )
        self.embedding = PatchEmbedding(shape, settings)
        self.blocks = nn.ModuleList(PreNormLayer(settings) for _ in range(settings.depth))
        self.norm = nn.LayerNorm(settings.width)
        self.head = nn.Linear(settings.width, outputs)

    def features(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d"]:
        """The CLS token after the last layer, normalised."""
        x = self.embedding(x)
        for number, block in enumerate(self.blocks, start=1):
            x = block(x, first_only=number == len(self.blocks))
        normalised: Tensor = self.norm(x[:, 0])
        return normalised
