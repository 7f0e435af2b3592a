"""FedPAC: features that are pulled to common class means, and a head for each client mixed from everybody's.

Source: Xu, Tong, Huang, "Personalized Federated Learning with Feature Alignment and Classifier Collaboration", ICLR
2023, arXiv:2306.11867, and the authors' code, JianXu95/FedPAC. Symbols: theta the body, phi_i the head of client i, z
in R^d features, n_i training samples, pi_ic the share of class c in them, mu_ic client i's mean of z in class c, q_ic =
pi_ic mu_ic, P_c the common class means, lambda the pull to them. Shape letters: m clients, s predictions, k classes.

Identity card
    shared      every layer group; the body is averaged, the last layer group mixed for each client
    personal    nothing that stays: the personal model is theta with the mixed phi_i, which the server has
    lives       theta, P and all phi_i on the server
    down, up    P scalars each for every client of the cohort and round; down k d more, up 2 k d + k + 1
    cost        FedAvg's, an epoch of the head and two passes for features; server: up to 5000 m^3 multiply-adds
    server sees its whole model, the shares of its classes, the mean of its features in each of them before and after
                training, and their variance; the mean of a class with one sample is that sample's features
    peers see   the mean of the bodies, mixtures of heads, which may be mostly one client's, and the common class means
    bound       p C for the body; for the head, its weight there times C and as much as its class means turn the
                weights, but never out of the convex hull of the heads; class means steer others' next training

The round
    R1  server: choose S, send (theta, phi_i) and P to each of its clients      strategies/fedpac.py
    R2  client: q_i, V_i = (E |z|^2 - sum_c |q_ic|^2) / n_i under the theta that came     `statistics`
    R3  client: phi_i <- one epoch of SGD on L_i, theta frozen                  clients/fedpac.py
    R4  client: theta_i <- E epochs of SGD on L_i + lambda mean_d (z - P_y)^2, phi_i frozen    `TowardsMeans`
    R5  client: send (theta_i, phi_i), n_i, pi_i, mu_i, n_i V_i, and mu_ic under theta_i       `class_means`
    R6  server: theta <- sum_i n_i theta_i / sum_i n_i; P_c <- mean of the last, weighted by n_i pi_ic   `common_means`
    R7  server: a_i = argmin over the simplex of sum_j V_j a_j^2 + |q_i - sum_j a_j q_j|^2     `head_weights`
    R8  server: phi_i <- sum_j a_ij phi_j, for i in S                           strategies/fedpac.py

The objective of R7 is the paper's a^T (diag(V) + D_i) a with D_i[j, k] = <q_i - q_j, q_i - q_k>. It is solved by
projected gradient, and weights below 0.001 are dropped, as in the authors' code. In the first round nothing pulls;
later the client's own mean of R2 stands in for the common one of a class of which nobody has sent a mean in the last
round, both as in that code. With lambda = 0, `head-rate=1` and `mix-heads=false`, which is a_i = e_i, it is FedRep with
one head epoch. A client that comes late starts with the first head; a novel one trains its head alone. Of texts a
sample of a class is a token that comes next, so that k is the vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated

import torch
from annotated_types import Ge, Gt
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from fedham_flwr.core.errors import UserError
from fedham_flwr.core.methods import Method, NetworkNeeds, Split, split_groups
from fedham_flwr.core.parameters import Manifest
from fedham_flwr.core.search_space import Range
from fedham_flwr.core.simplex import minimise
from fedham_flwr.models.heads import HeadSettings, features
from fedham_flwr.training.own_loss import Batch, OwnLoss

LEAST_WEIGHT = 1e-3
"""Smaller weights of heads are dropped."""


@dataclass(frozen=True)
class FedPACSettings:
    """Settings under `fedpac.`.

    Attributes:
        penalty: lambda, >= 0, of the mean squared distance to the common class means.
        head_rate: what the learning rate is multiplied with for the head's epoch, > 0; the authors': 0.1 for 0.01.
        mix_heads: whether heads are mixed; else each client gets its own back.
    """

    penalty: Annotated[float, Ge(0)] = 1.0
    head_rate: Annotated[float, Gt(0)] = 10.0
    mix_heads: bool = True


# ---- client ----------------------------------------------------------------------------------------------------------


def class_means(
    seen: Float[Tensor, "s d"], targets: Int64[Tensor, " s"], classes: int
) -> tuple[Float[Tensor, "k d"], Float[Tensor, " k"]]:
    """The mean of the features of each class, 0 for one without samples, and how many there are; float64, on the CPU.

    Args:
        seen: features.
        targets: their classes, below `classes`.
        classes: k.
    """
    seen, targets = seen.cpu().double(), targets.cpu()
    counts = torch.bincount(targets, minlength=classes).double()
    sums = torch.zeros(classes, seen.shape[1], dtype=torch.float64).index_add_(0, targets, seen)
    return sums / counts.clamp(min=1)[:, None], counts


def statistics(
    seen: Float[Tensor, "s d"], targets: Int64[Tensor, " s"], classes: int
) -> tuple[Float[Tensor, "k d"], Float[Tensor, " k"], Float[Tensor, ""]]:
    """R2: mu_ic, pi_ic and n_i V_i = sum_c (pi_c tr E[zz^T | c] - pi_c^2 |mu_c|^2), which is E |z|^2 - sum_c |q_c|^2.

    Args:
        seen: features of the training samples, s >= 1.
        targets: their classes.
        classes: k.
    """
    means, counts = class_means(seen, targets, classes)
    shares = counts / counts.sum()
    variance = seen.cpu().double().square().sum(1).mean() - (shares[:, None] * means).square().sum()
    return means, shares, variance.clamp(min=0)


class TowardsMeans(OwnLoss):
    """R4: the cross-entropy, and lambda times the mean squared distance of features to the mean of their class.

    Args:
        head: name of the last linear layer.
        means: P, float32 [k, d] where the model is; of every class of which the client has samples.
        penalty: lambda.
    """

    def __init__(self, head: str, means: Tensor, penalty: float) -> None:
        super().__init__({"means": means})
        self._head, self._penalty = head, penalty

    def of(self, model: nn.Module, batch: Batch, values: Mapping[str, Tensor]) -> Float[Tensor, " m"]:
        """The mean of both of each client."""
        seen, logits = features(model, self._head, batch.x)
        targets = batch.y.flatten()
        own = torch.arange(batch.clients, device=targets.device).repeat_interleave(len(targets) // batch.clients)
        apart = seen.float().flatten(0, -2) - values["means"][own, targets]
        fit = cross_entropy(logits.float().flatten(0, -2), targets, reduction="none")
        return batch.means(fit + self._penalty * apart.square().mean(-1))


# ---- server ----------------------------------------------------------------------------------------------------------


def common_means(
    means: Float[Tensor, "m k d"], counts: Float[Tensor, "m k"]
) -> tuple[Float[Tensor, "k d"], Bool[Tensor, " k"]]:
    """R6: P, and of which classes there is one.

    Args:
        means: of each client after training, float64.
        counts: n_i pi_ic >= 0, float64.
    """
    totals = counts.sum(0)
    return (counts[..., None] * means).sum(0) / totals.clamp(min=1e-12)[:, None], totals > 0


def head_weights(q: Float[Tensor, "m f"], variance: Float[Tensor, " m"]) -> Float[Tensor, "m m"]:
    """R7: a, whose rows are not negative and sum to 1; where nothing is gained by others, a client has its own head.

    Since a_i sums to 1, the objective is a^T (diag(V) + Q Q^T) a - 2 <Q q_i, a> + |q_i|^2.

    Args:
        q: q_i of each client, all classes in one row, float64.
        variance: V_i >= 0, float64.
    """
    inner = q @ q.T
    found = minimise(variance.diag() + inner, inner, torch.eye(len(q), dtype=q.dtype))
    found = found * (found >= LEAST_WEIGHT)
    return found / found.sum(-1, keepdim=True)


# ---- declaration -----------------------------------------------------------------------------------------------------


def head_group(manifest: Manifest, asks: str) -> str:
    """Name of the last layer group, the head.

    Args:
        manifest: the model's.
        asks: the setting that asks for a body below it, for the error.

    Raises:
        UserError: there is no other layer group.
    """
    *body, head = manifest.group_names
    if not body:
        raise UserError(f"{asks} trains the layers below the last one, and {head} is the model's only layer group")
    return head


def split(manifest: Manifest, _settings: object) -> Split:
    """Everything is shared; the head, too, which the server mixes."""
    head_group(manifest, 'strategy="fedpac"')
    return split_groups(manifest, ())


def network(_settings: object) -> NetworkNeeds:
    """A last layer that is linear."""
    return NetworkNeeds(head=HeadSettings(asks='strategy="fedpac"'))


def names_of(manifest: Manifest) -> tuple[Sequence[str], Sequence[str]]:
    """Names of the body's tensors, and of the head's."""
    *body, head = manifest.group_names
    return manifest.names(body), manifest.names([head])


METHOD = Method(
    "strategies.fedpac:FedPACStrategy",
    "clients.fedpac:FedPACClient",
    split,
    FedPACSettings,
    network=network,
    extras="the shares of its classes, the mean of its features in each of them before and after training, and their "
    "variance; the mean of a class with one sample is that sample's features",
    search={
        "fedpac.penalty": Range(0.1, 10.0, start=1.0, log=True, source="the authors' code"),
        "fedpac.head-rate": Range(1.0, 10.0, start=10.0, log=True, source="the authors' code"),
    },
)
