"""A Transformer that classifies texts, for FedTP too. Shape letters: b batch, t length, n tokens, d width.

The layers of the vision Transformer over a CLS token and the text's; nobody sees the mask that fills up a short text.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from annotated_types import Gt
from jaxtyping import Float, Int64
from torch import Tensor, nn

from fedham_flwr.core.shapes import vocabulary
from fedham_flwr.models.kernels import drop, per_sample
from fedham_flwr.models.transformer import PreNormLayer, Transformer, TransformerSettings, sinusoids


@dataclass(frozen=True)
class TextTransformerSettings(TransformerSettings):
    """Settings under `text-transformer.`, which `TransformerSettings` explains; some have other defaults here."""

    width: Annotated[int, Gt(0)] = 64
    depth: Annotated[int, Gt(0)] = 2
    heads: Annotated[int, Gt(0)] = 4
    head_dim: Annotated[int, Gt(0)] = 16
    hidden_dim: Annotated[int, Gt(0)] = 128
    positions: Literal["learned", "sinusoidal"] = "sinusoidal"


class TextEmbedding(nn.Module):
    """A vector for each token, behind a CLS token, plus positions."""

    def __init__(self, shape: tuple[int, ...], settings: TextTransformerSettings) -> None:
        super().__init__()
        self._dropout = settings.dropout
        self.tokens = nn.Embedding(vocabulary(shape), settings.width)
        self.positions = (
            nn.Parameter(nn.init.normal_(torch.empty(1 + shape[0], settings.width)))
            if settings.positions == "learned"
            else None
        )
        self.cls = nn.Parameter(nn.init.normal_(torch.empty(settings.width)))

    def forward(self, x: Int64[Tensor, "b t"]) -> Float[Tensor, "b n d"]:
        """The tokens of a batch of texts."""
        first = per_sample(self.cls, x.shape[0])[..., None, :].expand(x.shape[0], 1, -1)
        tokens = torch.cat([first, self.tokens(x)], dim=1)
        if self.positions is None:
            positions = sinusoids(tokens.shape[1], tokens.shape[2], tokens.device)
        else:
            positions = per_sample(self.positions, x.shape[0])
        return drop(tokens + positions, self._dropout, self.training)


class TextTransformer(Transformer):
    """707,140 parameters for 10,002 tokens and 4 classes with the default settings.

    Args:
        shape: (T, V, 2, 0).
        outputs: of the head.
        settings: its own.
    """

    kinds: ClassVar[tuple[str, ...]] = ("tokens",)
    Settings: ClassVar[type | None] = TextTransformerSettings

    def __init__(self, shape: tuple[int, ...], outputs: int, settings: TextTransformerSettings) -> None:
        super().__init__()
        self.embedding = TextEmbedding(shape, settings)
        self.blocks = nn.ModuleList(PreNormLayer(settings) for _ in range(settings.depth))
        self.norm = nn.LayerNorm(settings.width)
        self.head = nn.Linear(settings.width, outputs)

    def features(self, x: Int64[Tensor, "b t"]) -> Float[Tensor, "b d"]:
        """The CLS token after the last layer, normalised."""
        there = torch.cat([torch.ones_like(x[:, :1]), x], dim=1) > 0
        tokens: Tensor = self.embedding(x)
        for number, block in enumerate(self.blocks, start=1):
            tokens = block(tokens, first_only=number == len(self.blocks), there=there)
        normalised: Tensor = self.norm(tokens[:, 0])
        return normalised
