"""FedAS: the body that comes is aligned to the client's own past features, and bodies are weighted by their gradients.

Source: Yang, Huang, Ye, "FedAS: Bridging Inconsistency in Personalized Federated Learning", CVPR 2024, and its code in
PFLlib (clientas.py, serveras.py). Symbols: theta the body, phi_k the head of client k, z in R^d features, p_kc the mean
of z in class c under the body that client k trained last, F_k the trace of Fisher's information of its model on its
training samples, m_k their number. Shape letters: m clients, k classes.

Identity card
    shared      every layer group but the last one, theta
    personal    the last layer group, phi_k, and the class means p_k; the personal model is (aligned theta, phi_k)
    lives       theta on the server, phi_k and p_k with the client
    down, up    the scalars of theta, each way, for every client of the cohort and round; one number more up
    cost        FedAvg's, an epoch of alignment and the gradients and features of another one; in evaluations the first
    server sees its model without the head, and how large the gradients of its model are on its data, where
                `fedas.weights` is fisher (F_k)
    peers see   the mean of the bodies
    bound       p C before alignment, with p its share of the traces, which it says itself: a client that fits badly, or
                says so, has any share up to `fedas.most-share`; what a client keeps does not move

The round
    R1  server: choose S, send theta to each of its clients                     strategies/fedas.py
    R2  client: theta <- a pass of SGD on sum_c mean_{y = c} mean_d (z - p_kc)^2    `Alignment`
    R3  client: (theta_k, phi_k) <- E epochs of SGD on L_k from (theta, phi_k)  clients/fedas.py
    R4  client: F_k = sum over batches |grad L_k|^2 at (theta_k, phi_k); keep phi_k and p_k, send theta_k and F_k
    R5  server: theta <- sum_{k in S} a_k theta_k, a_k ~ F_k                    `client_weights`

Without alignment and with `weights="samples"` it is FedPer; equal traces give the plain mean. A client that has never
trained has no past to align to, and starts from theta as it came; public code aligns it to the features of the first
body. Alignment takes the run's optimiser and batch size where public code takes plain SGD with batches of 16, and the
gradients of R4 are those of a model in training, with dropout if it has any. `most-share` is not of the paper: with 1
there is no limit, as there. Of texts a sample of a class is a token that comes next.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from annotated_types import Ge, Gt, Le
from jaxtyping import Float
from torch import Tensor, nn

from fedham_flwr.algorithms.fedpac import head_group
from fedham_flwr.core.methods import Method, NetworkNeeds, Split, split_groups
from fedham_flwr.core.parameters import Manifest
from fedham_flwr.core.search_space import Range
from fedham_flwr.models.heads import HeadSettings, features
from fedham_flwr.training.own_loss import Batch, OwnLoss


@dataclass(frozen=True)
class FedASSettings:
    """Settings under `fedas.`.

    Attributes:
        align_epochs: passes over the training samples that align the body; 0 for no alignment.
        align_rate: their learning rate, > 0.
        weights: of the clients in the mean: the traces of Fisher's information, or the samples as in FedPer.
        most_share: the largest weight of one client in a mean by traces, (0, 1]; 1 for no limit.
    """

    align_epochs: Annotated[int, Ge(0)] = 1
    align_rate: Annotated[float, Gt(0)] = 0.01
    weights: Literal["fisher", "samples"] = "fisher"
    most_share: Annotated[float, Gt(0), Le(1)] = 1.0


class Alignment(OwnLoss):
    """R2: the sum over a batch's classes of the mean squared distance of features to the past mean of their class.

    Args:
        head: name of the last linear layer.
        means: p_k, float32 [k, d] where the model is.
        known: float32 [k], 1 for a class that has a past mean, and 0.
    """

    def __init__(self, head: str, means: Tensor, known: Tensor) -> None:
        super().__init__({"means": means, "known": known})
        self._head = head

    def of(self, model: nn.Module, batch: Batch, values: Mapping[str, Tensor]) -> Float[Tensor, " m"]:
        """The sum of each client; 0 where no class of the batch has a past mean."""
        seen, _ = features(model, self._head, batch.x)
        targets, classes = batch.y.flatten(), values["known"].shape[1]
        own = torch.arange(batch.clients, device=targets.device).repeat_interleave(len(targets) // batch.clients)
        counted = values["known"][own, targets]
        if batch.real is not None:
            counted = counted * batch.real.flatten().repeat_interleave(len(targets) // batch.real.numel())
        place = own * classes + targets
        counts = torch.zeros(batch.clients * classes, device=counted.device).index_add_(0, place, counted)
        apart = (seen.float().flatten(0, -2) - values["means"][own, targets]).square().mean(-1)
        return (apart * counted / counts[place].clamp(min=1)).view(batch.clients, -1).sum(1)


def client_weights(traces: Float[Tensor, " m"], samples: Float[Tensor, " m"], most: float) -> Float[Tensor, " m"]:
    """R5: a, which sums to 1.

    Args:
        traces: F_k >= 0, float64; where all are 0, the samples stand in.
        samples: m_k >= 1, float64.
        most: the largest weight; what is above goes to the others in proportion, and equal weights are always allowed.
    """
    weights = traces if bool(traces.any()) else samples
    weights = weights / weights.max()
    weights = weights.clamp(min=1e-12)  # a client without any weight would be no part of a mean
    weights = weights / weights.sum()
    most = max(most, 1 / len(weights))
    full = torch.zeros(len(weights), dtype=torch.bool)
    while bool((over := (weights > most) & ~full).any()):
        full |= over
        rest = torch.where(full, 0.0, weights)
        left = 1 - most * float(full.sum())
        weights = torch.where(full, most, rest * (left / rest.sum().clamp(min=1e-300)))
    return weights


def split(manifest: Manifest, _settings: object) -> Split:
    """The head stays with the client."""
    return split_groups(manifest, (head_group(manifest, 'strategy="fedas"'),))


def network(_settings: object) -> NetworkNeeds:
    """A last layer that is linear."""
    return NetworkNeeds(head=HeadSettings(asks='strategy="fedas"'))


def counts_samples(settings: FedASSettings) -> bool:
    """Whether samples are the weights of the mean; beside traces they only stand in where all of these are 0."""
    return settings.weights == "samples"


METHOD = Method(
    "strategies.fedas:FedASStrategy",
    "clients.fedas:FedASClient",
    split,
    FedASSettings,
    network=network,
    extras="how large the gradients of its model are on its data, where `fedas.weights` is fisher",
    counts_samples=counts_samples,
    search={
        "fedas.align-rate": Range(0.001, 0.1, start=0.01, log=True, source="public code"),
        "fedas.align-epochs": Range(1, 3, start=1, whole=True, source="public code"),
    },
)
