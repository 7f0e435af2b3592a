"""FedCP: a policy that shares out each sample's features between a common head and a client's own.

Source: Zhang et al., "FedCP: Separating Feature Information for Personalized Federated Learning via Conditional
Policy", KDD 2023, arXiv:2307.01217, and its authors' code (github.com/TsingZ0/FedCP). Symbols: f the body, h the common
head, pi the policy, h_k client k's head with weights W_k, f_0 and h the body and head that came, z features of d
numbers, u_k the context, a the share of h_k in [0, 1]^d, n_k its training samples, lambda the weight of the
discrepancy.

Identity card
    shared      f, h and pi: every layer group of the network, and the policy
    personal    h_k, a second last layer, and u_k; the personal model is h_k(a z) + h((1 - a) z)
    lives       f, h, pi on the server, h_k and u_k with the client
    down, up    P + 2 d^2 + 6 d scalars each for every client of the cohort and round, with the policy's
    cost        FedAvg's, the policy and a second last layer, and in each local step the body that came once more,
                forwards, and 3 b^2 distances of features of a batch of b
    server sees its whole model: it has h, and so can work out h_k of the (h_k + h)/2 that it gets
    peers see   the means of the bodies, heads and policies
    bound       p C; the personal head does not move

The round
    R1  server: choose S, send (f, h, pi) to each of its clients                strategies/fedcp.py
    R2  client: u_k <- s / |s| with s = sum_j W_kj, the rows of its weights     `direction` in models/parts.py
    R3  client: (f_k, pi_k, h_k) <- E epochs of SGD on CE(h_k(a z) + h((1 - a) z), y) + lambda MMD^2(f_k(x), f_0(x)),
                a = softmax(pi(u_k z) + Gumbel noise)_1, with h and f_0 as they came        `Conditional`
    R4  client: keep h_k, send (f_k, (h_k + h)/2, pi_k) and n_k                 clients/fedcp.py
    R5  server: (f, h, pi) <- sum_{k in S} n_k (what k sent) / sum_{k in S} n_k     `fedavg.aggregate`

pi is a linear layer of 2 d outputs, layer normalisation and ReLU, of which two numbers stand for each feature. MMD^2 is
the biased estimate over a batch, with a sum of the kernels exp(-|x - y|^2 / (2 s)) for s in 10, 15, 20 and 50. With a
fixed at 1, without h's bias and with lambda = 0 it is FedPer.

Deviations: in the authors' code the gate is drawn with noise when it predicts too; here noise is of training alone, so
that predictions and exported models are the same each time. f_0 works as in evaluation, without dropout and by its
running statistics. u_k is that of h_k at the start of the round, as in PFLlib; one version of the authors' code makes
it of the difference of two common heads. Of a text with a prediction at each place, the discrepancy is of its mean
features. h_k starts as the first h.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated

import torch
from annotated_types import Ge
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call

from fedham_flwr.core.methods import Method, NetworkNeeds, Split, split_groups
from fedham_flwr.core.parameters import Manifest
from fedham_flwr.core.search_space import Choice
from fedham_flwr.models import kernels
from fedham_flwr.models.heads import HeadSettings, features
from fedham_flwr.models.parts import PolicyHead
from fedham_flwr.training.engine.losses import terms
from fedham_flwr.training.own_loss import Batch, OwnLoss

HEAD, CONTEXT = PolicyHead.parts["personal"], PolicyHead.parts["context"]
"""The layer groups of h_k and u_k."""
BANDWIDTHS = 10.0, 15.0, 20.0, 50.0
"""s of the kernels, squares of lengths of features."""


@dataclass(frozen=True)
class FedCPSettings:
    """Settings under `fedcp.`.

    Attributes:
        discrepancy: lambda, weight of how far a batch's features are from those of the body that came, >= 0.
    """

    discrepancy: Annotated[float, Ge(0)] = 5.0


def discrepancy(
    rows: Float[Tensor, "m b d"], others: Float[Tensor, "m b d"], real: Float[Tensor, "m b"] | None = None
) -> Float[Tensor, " m"]:
    """R3: MMD^2 of two sets of features of each client, the biased estimate: means over all pairs.

    Args:
        rows: of one set.
        others: of the other.
        real: 1 for a sample, 0 for a filler; by default all are samples.
    """
    pairs = similar(rows, rows) + similar(others, others) - 2 * similar(rows, others)
    if real is None:
        return pairs.mean((1, 2))
    both = real[:, :, None] * real[:, None, :]
    return (pairs * both).sum((1, 2)) / both.sum((1, 2)).clamp(min=1)


def similar(rows: Float[Tensor, "m b d"], others: Float[Tensor, "m b d"]) -> Float[Tensor, "m b b"]:
    """The sum of the kernels of each pair; arguments as of `discrepancy`."""
    lengths = rows.square().sum(2)[:, :, None] + others.square().sum(2)[:, None, :]
    apart = lengths - 2 * rows @ others.transpose(1, 2)
    return sum((torch.exp(-apart / (2 * width)) for width in BANDWIDTHS), torch.zeros_like(apart))


class Conditional(OwnLoss):
    """R3: the task's loss, and the discrepancy to the features of the body that came.

    Args:
        head: name of the last linear layer, which has a policy as a part.
        body: f_0, by the names of the model.
        weight: lambda.
    """

    def __init__(self, head: str, body: Mapping[str, Tensor], weight: float) -> None:
        super().__init__(body)
        self._head, self._weight = head, weight

    def of(self, model: nn.Module, batch: Batch, values: Mapping[str, Tensor]) -> Float[Tensor, " m"]:
        """The loss of each client."""
        seen, outputs = features(model, self._head, batch.x)
        losses = batch.means(terms(outputs.float(), batch.y))
        if not self._weight:
            return losses
        body = values if kernels.is_stacked() else {name: value[0] for name, value in values.items()}
        with torch.no_grad(), as_in_evaluation(model):
            was = functional_call(_Seen(model, self._head), {f"model.{n}": t for n, t in body.items()}, (batch.x,))
        now, then = (self._of_samples(rows, batch) for rows in (seen, was))
        return losses + self._weight * discrepancy(now, then, batch.real)

    @staticmethod
    def _of_samples(rows: Tensor, batch: Batch) -> Float[Tensor, "m b d"]:
        """A row for each sample, the mean where there are several."""
        apart: Tensor = rows.float().view(batch.clients, len(batch.y) // batch.clients, -1, rows.shape[-1])
        return apart.mean(2)


class _Seen(nn.Module):
    """What a network's head sees; a module, so that the network's tensors can be replaced while it works."""

    def __init__(self, model: nn.Module, head: str) -> None:
        super().__init__()
        self.model, self._head = model, head

    def forward(self, x: Tensor) -> Tensor:
        return features(self.model, self._head, x)[0]


@contextmanager
def as_in_evaluation(model: nn.Module) -> Iterator[None]:
    """A network works as in evaluation within, and each of its modules then as before.

    Args:
        model: the network.
    """
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def split(manifest: Manifest, _settings: object) -> Split:
    """The second head and the context stay with the client."""
    return split_groups(manifest, (HEAD, CONTEXT))


def network(_settings: object) -> NetworkNeeds:
    """A policy, a second head and its context in the last layer."""
    return NetworkNeeds(head=HeadSettings("policy", 'strategy="fedcp"'))


METHOD = Method(
    "strategies.fedcp:FedCPStrategy",
    "clients.fedcp:FedCPClient",
    split,
    FedCPSettings,
    averages=True,
    network=network,
    search={"fedcp.discrepancy": Choice((0.0, 0.1, 1.0, 5.0, 10.0), start=5.0, source="the authors' code")},
)
