"""What the Transformers have in common: settings, attention, layers, heads and layer groups.

Shape letters: b batch, n tokens, m tokens that ask, d width, k classes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated, Literal

import torch
from annotated_types import Ge, Gt, Lt
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn.functional import gelu, linear, relu

from fedham_flwr.core.parameters import LayerGroup, module_group
from fedham_flwr.models.kernels import attend, drop, per_sample
from fedham_flwr.models.network import Network


@dataclass(frozen=True)
class TransformerSettings:
    """Settings of both Transformers.

    Attributes:
        width: d, of a token.
        depth: number of layers.
        heads: h, of the attention in each layer.
        head_dim: e, of a head's queries, keys and values; heads times head_dim need not be the width.
        hidden_dim: of the feed-forward layers.
        dropout: of the embedding and of what each part of a layer adds, [0, 1).
        positions: learned (standard normal at first), or sinusoidal, which have no parameters.
    """

    width: Annotated[int, Gt(0)] = 128
    depth: Annotated[int, Gt(0)] = 6
    heads: Annotated[int, Gt(0)] = 8
    head_dim: Annotated[int, Gt(0)] = 64
    hidden_dim: Annotated[int, Gt(0)] = 256
    dropout: Annotated[float, Ge(0), Lt(1)] = 0.1
    positions: Literal["learned", "sinusoidal"] = "learned"


# ---- attention -------------------------------------------------------------------------------------------------------


class Attention(nn.Module):
    """Self-attention of several heads.

    Args:
        settings: sizes.
        causal: whether a token sees only itself and those before it.
        bias: of the output projection; queries, keys and values have none.
    """

    def __init__(self, settings: TransformerSettings, causal: bool, bias: bool) -> None:
        super().__init__()
        inner = settings.heads * settings.head_dim
        self._heads, self._causal = (settings.heads, settings.head_dim), causal
        self.to_qkv = nn.Linear(settings.width, 3 * inner, bias=False)
        self.out = nn.Linear(inner, settings.width, bias=bias)

    def forward(
        self, x: Float[Tensor, "b n d"], first_only: bool = False, there: Bool[Tensor, "b n"] | None = None
    ) -> Float[Tensor, "b m d"]:
        """What each token gathers from all that it sees, of those that are there; `first_only`: the first's, m = 1."""
        asking = x[:, :1] if first_only else x
        if isinstance(self.to_qkv, nn.Linear):
            # Three products with parts of the weight: the gradient of a part of the tokens would be copied twice.
            parts = zip((asking, x, x), self.to_qkv.weight.chunk(3, -2), strict=True)
            made = [linear(tokens, part) for tokens, part in parts]
        else:  # a layer with an adapter stands there, which is more than its weight
            made = list(self.to_qkv(x).chunk(3, -1))
            made[0] = made[0][:, : asking.shape[1]]
        query, key, value = (part.reshape(x.shape[0], -1, *self._heads).transpose(1, 2) for part in made)
        gathered = attend(query, key, value, self._causal and not first_only, there)
        answer: Tensor = self.out(gathered.transpose(1, 2).flatten(2))
        return answer


# ---- layers ----------------------------------------------------------------------------------------------------------


class PreNormLayer(nn.Module):
    """x + attention(norm(x)), then x + feed-forward(norm(x)) with GELU: a layer of the vision Transformer."""

    def __init__(self, settings: TransformerSettings) -> None:
        super().__init__()
        self._dropout = settings.dropout
        self.norm1 = nn.LayerNorm(settings.width)
        self.attention = Attention(settings, causal=False, bias=True)
        self.norm2 = nn.LayerNorm(settings.width)
        self.up = nn.Linear(settings.width, settings.hidden_dim)
        self.down = nn.Linear(settings.hidden_dim, settings.width)

    def forward(
        self, x: Float[Tensor, "b n d"], first_only: bool = False, there: Bool[Tensor, "b n"] | None = None
    ) -> Float[Tensor, "b m d"]:
        """The tokens after this layer, which see those that are there; `first_only`: only the first one, m = 1."""
        kept = x[:, :1] if first_only else x
        kept = kept + self._drop(self.attention(self.norm1(x), first_only, there))
        return kept + self._drop(self.down(self._drop(gelu(self.up(self.norm2(kept))))))

    def _drop(self, x: Tensor) -> Tensor:
        return drop(x, self._dropout, self.training)


class PostNormLayer(nn.Module):
    """norm(x + attention(x)), then norm(x + feed-forward(x)) with ReLU, causal: a layer of the language Transformer."""

    def __init__(self, settings: TransformerSettings) -> None:
        super().__init__()
        self._dropout = settings.dropout
        self.attention = Attention(settings, causal=True, bias=False)
        self.norm1 = nn.LayerNorm(settings.width, eps=1e-6)
        self.up = nn.Linear(settings.width, settings.hidden_dim)
        self.down = nn.Linear(settings.hidden_dim, settings.width)
        self.norm2 = nn.LayerNorm(settings.width, eps=1e-6)

    def forward(self, x: Float[Tensor, "b n d"]) -> Float[Tensor, "b n d"]:
        """The tokens after this layer."""
        x = self.norm1(x + self._drop(self.attention(x)))
        after: Tensor = self.norm2(x + self._drop(self.down(relu(self.up(x)))))
        return after

    def _drop(self, x: Tensor) -> Tensor:
        return drop(x, self._dropout, self.training)


@lru_cache(maxsize=8)
def sinusoids(tokens: int, width: int, device: torch.device) -> Float[Tensor, "n d"]:
    """Sines and cosines of a token's number at falling frequencies, in turn (Vaswani et al., NeurIPS 2017, 3.5).

    Args:
        tokens: n.
        width: d.
        device: where the result is; do not write to it, since it is kept for the next call.
    """
    steps = torch.arange(0, width, 2, dtype=torch.float64) / width
    angles = torch.arange(tokens, dtype=torch.float64)[:, None] * 10_000.0**-steps
    table = torch.stack([angles.sin(), angles.cos()], dim=2).flatten(1)[:, :width]
    return table.to(device, torch.float32)


# ---- networks --------------------------------------------------------------------------------------------------------


class Transformer(Network):
    """An embedding, layers and a head.

    A subclass makes `embedding`, `blocks` and, last, `head`; it may have a module `norm`.

    Attributes:
        scale: of the logits.
    """

    scale: float = 1.0
    embedding: nn.Module
    blocks: nn.ModuleList
    head: nn.Linear

    def features(self, x: Tensor) -> Float[Tensor, "*b d"]:
        """What the head sees of a batch of inputs."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Float[Tensor, "*b k"]:
        """Logits of a batch."""
        logits: Tensor = self.head(self.features(x))
        return logits if self.scale == 1.0 else logits * self.scale

    def layer_groups(self) -> Sequence[LayerGroup]:
        """Embedding; queries, keys and values of all layers; the rest of each layer; the last norm; the head."""
        return tuple(self._groups())

    def _groups(self) -> Iterator[LayerGroup]:
        projections = [f"blocks.{number}.attention.to_qkv.weight" for number in range(len(self.blocks))]
        yield module_group(self, "embedding")
        yield LayerGroup("attention", tuple(projections))
        for number, projection in enumerate(projections):
            names = module_group(self, f"blocks.{number}").parameters
            yield LayerGroup(f"block{number + 1}", tuple(name for name in names if name != projection))
        if hasattr(self, "norm"):
            yield module_group(self, "norm")
        yield module_group(self, "head")


class ClsEmbedding(nn.Module):
    """Patches through one linear layer, behind a CLS token, plus positions."""

    def __init__(self, values: int, patches: int, settings: TransformerSettings) -> None:
        super().__init__()
        self._dropout = settings.dropout
        self.patches = nn.Linear(values, settings.width)
        learned = settings.positions == "learned"
        first = nn.init.normal_(torch.empty(1 + patches, settings.width)) if learned else None
        self.positions = None if first is None else nn.Parameter(first)
        self.cls = nn.Parameter(nn.init.normal_(torch.empty(settings.width)))

    def embed(self, cut: Float[Tensor, "b n v"]) -> Float[Tensor, "b m d"]:
        """The tokens of a batch, one more than patches."""
        cls = per_sample(self.cls, cut.shape[0])[..., None, :].expand(cut.shape[0], 1, -1)
        tokens = torch.cat([cls, self.patches(cut)], dim=1)
        if self.positions is None:
            positions = sinusoids(tokens.shape[1], tokens.shape[2], tokens.device)
        else:
            positions = per_sample(self.positions, cut.shape[0])
        return drop(tokens + positions, self._dropout, self.training)
