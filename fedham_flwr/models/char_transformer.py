"""The language Transformer of FedTP, over characters, and causal. Shape letters: b batch, t length, d width.

Source: the encoder of Vaswani et al., "Attention Is All You Need", NeurIPS 2017, in the sizes of FedTP's authors (Li et
al., IEEE TNNLS 2023, authors' code). Theirs has no mask, so that a character sees the one it should predict; this one
has. Theirs also drops attention weights at random, and starts from smaller character vectors, beside which positions
are so large that SGD takes several times as many steps to the same loss.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from annotated_types import Gt
from jaxtyping import Float, Int64
from torch import Tensor, nn

from fedham_flwr.models.kernels import drop, per_sample
from fedham_flwr.models.transformer import PostNormLayer, Transformer, TransformerSettings, sinusoids


@dataclass(frozen=True)
class CharTransformerSettings(TransformerSettings):
    """Settings under `char-transformer.`, which `TransformerSettings` explains; some have other defaults here."""

    depth: Annotated[int, Gt(0)] = 2
    positions: Literal["learned", "sinusoidal"] = "sinusoidal"


class CharEmbedding(nn.Module):
    """A vector for each character, plus positions, normalised."""

    def __init__(self, length: int, vocabulary: int, settings: CharTransformerSettings) -> None:
        super().__init__()
        self._dropout = settings.dropout
        self.characters = nn.Embedding(vocabulary, settings.width)
        self.positions = (
            nn.Parameter(nn.init.normal_(torch.empty(length, settings.width)))
            if settings.positions == "learned"
            else None
        )
        self.norm = nn.LayerNorm(settings.width, eps=1e-6)

    def forward(self, x: Int64[Tensor, "b t"]) -> Float[Tensor, "b t d"]:
        """The tokens of a batch of texts."""
        tokens = self.characters(x)
        if self.positions is None:
            positions = sinusoids(tokens.shape[1], tokens.shape[2], tokens.device)
        else:
            positions = per_sample(self.positions, x.shape[0])[..., : tokens.shape[1], :]
        embedded: Tensor = self.norm(drop(tokens + positions, self._dropout, self.training))
        return embedded


class CharTransformer(Transformer):
    """683,008 parameters for 100 characters with the default settings; 354,432 with one layer, 1,997,312 with six.

    Args:
        shape: (T,), the length of the texts it trains on; with learned positions they may be shorter, not longer.
        outputs: number of characters there can be.
        settings: its own.
    """

    kinds: ClassVar[tuple[str, ...]] = ("text",)
    Settings: ClassVar[type | None] = CharTransformerSettings

    def __init__(self, shape: tuple[int, ...], outputs: int, settings: CharTransformerSettings) -> None:
        super().__init__()
        self.scale = settings.width**-0.5
        self.embedding = CharEmbedding(shape[0], outputs, settings)
        self.blocks = nn.ModuleList(PostNormLayer(settings) for _ in range(settings.depth))
        self.head = nn.Linear(settings.width, outputs, bias=False)

    def features(self, x: Int64[Tensor, "b t"]) -> Float[Tensor, "b t d"]:
        """Each character after the last layer, normalised; it has seen itself and those before it."""
        tokens: Tensor = self.embedding(x)
        for block in self.blocks:
            tokens = block(tokens)
        return tokens
