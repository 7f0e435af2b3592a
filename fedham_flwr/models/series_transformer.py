"""A Transformer over time, for FedTP too. Shape letters: b batch, c channels with gaps, t time, n tokens, d width.

Patches of time steps are its tokens, as in Nie et al., "A Time Series is Worth 64 Words", ICLR 2023, but of all
channels together; behind a CLS token they go through the layers of the vision Transformer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from annotated_types import Gt
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import pad

from fedham_flwr.core.shapes import dimensions
from fedham_flwr.models.transformer import ClsEmbedding, PreNormLayer, Transformer, TransformerSettings


@dataclass(frozen=True)
class SeriesTransformerSettings(TransformerSettings):
    """Settings under `series-transformer.`, which `TransformerSettings` explains; some have other defaults here.

    Attributes:
        patch_size: steps of a patch, which becomes one token; the last one is filled up with zeros.
    """

    width: Annotated[int, Gt(0)] = 64
    depth: Annotated[int, Gt(0)] = 2
    heads: Annotated[int, Gt(0)] = 4
    head_dim: Annotated[int, Gt(0)] = 16
    hidden_dim: Annotated[int, Gt(0)] = 128
    patch_size: Annotated[int, Gt(0)] = 8


class StepsEmbedding(ClsEmbedding):
    """Patches of steps through one linear layer, behind a CLS token, plus positions."""

    def __init__(self, shape: tuple[int, ...], settings: SeriesTransformerSettings) -> None:
        channels, time = dimensions(shape)
        super().__init__(channels * settings.patch_size, -(-time // settings.patch_size), settings)
        self._patch = settings.patch_size

    def forward(self, x: Float[Tensor, "b c t"]) -> Float[Tensor, "b n d"]:
        """The tokens of a batch of series."""
        return self.embed(cut(x, self._patch))


def cut(x: Float[Tensor, "b c t"], steps: int) -> Float[Tensor, "b n v"]:
    """Patches in the order of time, each as its steps, each as its channels.

    Args:
        x: series.
        steps: of a patch.
    """
    x = pad(x, (0, -x.shape[2] % steps))
    return x.transpose(1, 2).reshape(x.shape[0], x.shape[2] // steps, steps * x.shape[1])


class SeriesTransformer(Transformer):
    """70,660 parameters for 3 channels of 50 steps and 4 classes with the default settings.

    Args:
        shape: (2 C, T, 1, 0) of a series of C channels; or (channels, time) of arrays.
        outputs: of the head.
        settings: its own.
    """

    kinds: ClassVar[tuple[str, ...]] = ("series", "table")
    Settings: ClassVar[type | None] = SeriesTransformerSettings

    def __init__(self, shape: tuple[int, ...], outputs: int, settings: SeriesTransformerSettings) -> None:
        super().__init__()
        self.embedding = StepsEmbedding(shape, settings)
        self.blocks = nn.ModuleList(PreNormLayer(settings) for _ in range(settings.depth))
        self.norm = nn.LayerNorm(settings.width)
        self.head = nn.Linear(settings.width, outputs)

    def features(self, x: Float[Tensor, "b c t"]) -> Float[Tensor, "b d"]:
        """The CLS token after the last layer, normalised."""
        x = self.embedding(x)
        for number, block in enumerate(self.blocks, start=1):
            x = block(x, first_only=number == len(self.blocks))
        normalised: Tensor = self.norm(x[:, 0])
        return normalised
