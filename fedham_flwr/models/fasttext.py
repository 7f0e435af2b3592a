"""A bag of words and pairs of words. Shape letters: b batch, t tokens, d width, k classes.

Source: Joulin, Grave, Bojanowski, Mikolov, "Bag of Tricks for Efficient Text Classification", EACL 2017: the mean of
the vectors of all words and of all pairs of neighbours, these by a hash, and a linear layer. Vectors start standard
normal here, where theirs start near zero, since few local steps would not move those.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from annotated_types import Ge, Gt
from jaxtyping import Float, Int64
from torch import Tensor, nn

from fedham_flwr.core.parameters import LayerGroup, module_group
from fedham_flwr.core.shapes import vocabulary
from fedham_flwr.models.network import Network

_FIRST, _SECOND = 1_000_003, 998_244_353  # primes by which a pair is hashed


@dataclass(frozen=True)
class FastTextSettings:
    """Settings under `fasttext.`.

    Attributes:
        width: d, of a vector.
        pairs: how many vectors the pairs of neighbours share by their hash; 0: words alone.
    """

    width: Annotated[int, Gt(0)] = 32
    pairs: Annotated[int, Ge(0)] = 10_000


class FastText(Network):
    """words, pairs, head. 640,196 parameters for 10,002 tokens and 4 classes with the default settings.

    Args:
        shape: (T, V, 2, 0).
        outputs: of the head.
        settings: its own.
    """

    kinds: ClassVar[tuple[str, ...]] = ("tokens",)
    Settings: ClassVar[type | None] = FastTextSettings

    def __init__(self, shape: tuple[int, ...], outputs: int, settings: FastTextSettings = FastTextSettings()) -> None:
        super().__init__()
        self._pairs = settings.pairs
        self.words = nn.Embedding(vocabulary(shape), settings.width)
        if settings.pairs:
            self.pairs = nn.Embedding(settings.pairs, settings.width)
        self.head = nn.Linear(settings.width, outputs)

    def forward(self, x: Int64[Tensor, "b t"]) -> Float[Tensor, "b k"]:
        """Logits of a batch of texts, in which 0 stands behind those that are too short."""
        vectors, there = self.words(x), x > 0
        if self._pairs and x.shape[1] > 1:
            pairs = (x[:, :-1] * _FIRST + x[:, 1:] * _SECOND) % self._pairs
            vectors = torch.cat([vectors, self.pairs(pairs)], dim=1)
            there = torch.cat([there, there[:, 1:]], dim=1)  # what stands before a word is one too
        weights = there.to(vectors.dtype)[..., None]
        logits: Tensor = self.head((vectors * weights).sum(1) / weights.sum(1).clamp(min=1))
        return logits

    def layer_groups(self) -> Sequence[LayerGroup]:
        """One group for each table of vectors, and the head."""
        return tuple(module_group(self, name) for name in ("words", *(["pairs"] if self._pairs else []), "head"))
