"""A head with parts of a method's own, and such heads whose parts change what the head sees.

Shape letters: b samples or predictions, d features, k outputs, m clients whose parameters are stacked, 1 without.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from fedham_flwr.models.kernels import gumbel, per_sample


class Head(nn.Linear):
    """A head with parts of a method's own. Its weight and bias are the network's, under their names.

    Args:
        head: the network's; its tensors are taken over.

    Attributes:
        parts: submodule -> the layer group that it makes up.
    """

    parts: ClassVar[Mapping[str, str]] = {}

    def __init__(self, head: nn.Linear) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = head.in_features, head.out_features
        self.weight, self.bias = head.weight, head.bias

    def own(self, features: Float[Tensor, "*b d"]) -> Float[Tensor, "*b k"]:
        """What the head gives without its parts."""
        return super().forward(features)


class Offset(nn.Module):
    """A vector that is added to every sample's features; it starts at zero.

    Args:
        width: d, its length.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.vector = nn.Parameter(torch.zeros(width))

    def forward(self, features: Float[Tensor, "*b d"]) -> Float[Tensor, "*b d"]:
        """The features with the vector added."""
        vectors = per_sample(self.vector, len(features))
        return features + vectors.view(-1, *[1] * (features.dim() - 2), vectors.shape[-1])


class OffsetHead(Head):
    """A head that sees the features with a vector added to them."""

    parts: ClassVar[Mapping[str, str]] = {"offset": "feature-offset"}

    def __init__(self, head: nn.Linear) -> None:
        super().__init__(head)
        self.offset = Offset(head.in_features)

    def forward(self, features: Float[Tensor, "*b d"]) -> Float[Tensor, "*b k"]:
        """The head of the moved features."""
        moved: Tensor = self.offset(features)
        return self.own(moved)


class Fixed(nn.Module):
    """A vector that is part of the model and no parameter: a method sets it, and training does not change it.

    Args:
        value: what it is at first.
    """

    value: Tensor

    def __init__(self, value: Float[Tensor, " d"]) -> None:
        super().__init__()
        self.register_buffer("value", value.detach().clone())

    def rows(self) -> Float[Tensor, "m d"]:
        """Of each client whose parameters there are, a row."""
        return self.value.view(-1, self.value.shape[-1])


class Valve(nn.Module):
    """Features that a condition scales, moves and cuts off below zero: ReLU(z (gamma(c) + 1) + beta(c)).

    Args:
        width: d.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gamma, self.beta = (
            nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.LayerNorm(width)) for _ in range(2)
        )

    def forward(self, features: Float[Tensor, "*b d"], conditions: Float[Tensor, "m d"]) -> Float[Tensor, "*b d"]:
        """Features under a condition.

        Args:
            features: of the samples of m clients, one client after the other.
            conditions: c of each client; of one for all samples.
        """
        shape = (-1, *[1] * (features.dim() - 2), features.shape[-1])
        gamma, beta = (of_samples(part(conditions), len(features)).view(shape) for part in (self.gamma, self.beta))
        return torch.relu(features * (gamma + 1) + beta)


def of_samples(rows: Float[Tensor, "m d"], samples: int) -> Float[Tensor, "n d"]:
    """A row of each client for each of its samples; a single one stays single.

    Args:
        rows: of m clients.
        samples: of all clients together.
    """
    return rows if len(rows) == 1 else rows.repeat_interleave(samples // len(rows), 0)


class ValveHead(Head):
    """A head that sees the features behind a valve, whose condition is a fixed vector; and an embedding of each class.

    The first condition is the mean of the embeddings.
    """

    parts: ClassVar[Mapping[str, str]] = {
        "valve": "conditional-valve",
        "embeddings": "class-embeddings",
        "condition": "condition",
    }

    def __init__(self, head: nn.Linear) -> None:
        super().__init__(head)
        self.valve = Valve(head.in_features)
        self.embeddings = nn.Embedding(head.out_features, head.in_features)
        self.condition = Fixed(self.embeddings.weight.mean(0))

    def forward(self, features: Float[Tensor, "*b d"]) -> Float[Tensor, "*b k"]:
        """The head of the features under the condition."""
        seen: Tensor = self.valve(features, self.condition.rows())
        return self.own(seen)


class Policy(nn.Module):
    """Which share of each feature of a sample is one of two heads': in training a draw of it, by Gumbel noise.

    Args:
        width: d.

    Attributes:
        draws: it draws random numbers in training.
    """

    draws = True

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear, self.norm = nn.Linear(width, 2 * width), nn.LayerNorm(2 * width)

    def forward(self, seen: Float[Tensor, "*b d"]) -> Float[Tensor, "*b d"]:
        """The first head's share, in [0, 1]; the other has the rest."""
        logits: Tensor = torch.relu(self.norm(self.linear(seen))).float()
        logits = logits.reshape(*seen.shape[:-1], 2, seen.shape[-1])
        return gumbel(logits, self.training).softmax(-2).select(-2, 0).to(seen.dtype)


class PolicyHead(Head):
    """Two heads, each with a share of the features that a policy decides of each sample; both start alike.

    The policy sees the features times a fixed vector, the context, which is `direction` of the second head at first.
    """

    parts: ClassVar[Mapping[str, str]] = {"policy": "policy", "personal": "personal-head", "context": "context"}

    def __init__(self, head: nn.Linear) -> None:
        super().__init__(head)
        self.policy = Policy(head.in_features)
        self.personal = nn.Linear(head.in_features, head.out_features, head.bias is not None)
        self.personal.load_state_dict(head.state_dict())
        self.context = Fixed(direction(head.weight.detach()))

    def forward(self, features: Float[Tensor, "*b d"]) -> Float[Tensor, "*b k"]:
        """The sum of both heads, each of its share of the features."""
        context = of_samples(self.context.rows(), len(features))
        share: Tensor = self.policy(features * context.view(-1, *[1] * (features.dim() - 2), context.shape[-1]))
        first: Tensor = self.personal(share * features)
        return first + self.own((1 - share) * features)


def direction(weight: Float[Tensor, "k d"]) -> Float[Tensor, " d"]:
    """The sum of a head's weights over its outputs, at length 1.

    Args:
        weight: the head's.
    """
    return nn.functional.normalize(weight.sum(0), dim=0)
