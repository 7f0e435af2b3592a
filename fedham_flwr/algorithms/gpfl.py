"""GPFL: features for all, drawn to common embeddings of the classes, and by a valve a client's own for its own head.

Source: Zhang et al., "GPFL: Simultaneously Learning Global and Personalized Feature Information for Personalized
Federated Learning", ICCV 2023, arXiv:2308.10279, and its authors' code (github.com/TsingZ0/GPFL). Symbols: f the body,
h_k client k's head, z features of d numbers, E the embeddings of the classes, E_c of class c (GCE in the paper), V the
conditional valve (CoV), pi_kc the share of class c in k's training samples, n_k their number, g and p_k the common and
the personal condition, lambda and mu the weights of the magnitude-level loss and of the decay of E and V.

Identity card
    shared      f, E and V: every layer group of the network but the last, the embeddings and the valve
    personal    the last layer group, h_k, and p_k; the personal model is h_k(V(f(x), p_k))
    lives       f, E, V on the server, h_k and p_k with the client
    down, up    the scalars of f, E and V, each way, for every client of the cohort and round: d K of E, 2 d^2 + 6 d of
                V
    cost        FedAvg's, and in each local step the valve twice and the cosines of features and embeddings
    server sees its model without the head, with embeddings of the classes
    peers see   the means of the bodies, embeddings and valves
    bound       p C; the head does not move, and p_k moves as E does, by at most p_b C

The round
    R1  server: choose S, send (f, E, V) to each of its clients                 strategies/gpfl.py
    R2  client: g <- mean_c E_c, p_k <- sum_c pi_kc E_c, E0 <- E, of the E that came         `condition`
    R3  client: (f_k, E_k, V_k, h_k) <- E epochs of SGD on CE(h(V(z, p_k)), y) + CE(cos(V(z, g), E), y)
                + lambda |V(z, g) - E0_y|_F, with weight decay mu of E and V        `Guided`, `Decay`
    R4  client: keep h_k, send (f_k, E_k, V_k) and n_k                          clients/gpfl.py
    R5  server: (f, E, V) <- sum_{k in S} n_k (f_k, E_k, V_k) / sum_{k in S} n_k     `fedavg.aggregate`

V(z, c) = ReLU(z (gamma(c) + 1) + beta(c)), where gamma and beta are a linear layer, ReLU and layer normalisation each.
The softmax over cosines has no temperature; the norm is that of a batch's differences, taken together and not a mean.
g, p_k and E0 stay during a round, and no gradient goes through them. p_k is part of the model, so that an exported one
predicts alone. With a valve that passes on what it gets and both losses of E left out it is FedPer.

Deviation from the authors' code, which makes g and p_k of the embeddings that the client itself trained last: here
they are of those that came, which E0 is in both. Every h_k starts from the same initialisation. The decay, like
momentum, acts through the run's optimiser, on top of its own `weight-decay`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated

import torch
from annotated_types import Ge
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize

from fedham_flwr.core.methods import Method, NetworkNeeds, Split, split_groups
from fedham_flwr.core.parameters import Manifest
from fedham_flwr.core.search_space import Choice
from fedham_flwr.models.heads import HeadSettings, features, head_group, head_name
from fedham_flwr.models.parts import ValveHead
from fedham_flwr.training.own_loss import Batch, OwnLoss

VALVE, EMBEDDINGS, CONDITION = (ValveHead.parts[name] for name in ("valve", "embeddings", "condition"))
"""The layer groups of V, E and p_k."""


@dataclass(frozen=True)
class GPFLSettings:
    """Settings under `gpfl.`.

    Attributes:
        magnitude: lambda, weight of the distance of features to the embeddings of their classes, >= 0.
        decay: mu, weight decay of embeddings and valve alone, >= 0. The authors have 0.1 for small convolutional
            networks, and 0 with lambda 0.0001 for ResNet-18 and fastText.
    """

    magnitude: Annotated[float, Ge(0)] = 0.01
    decay: Annotated[float, Ge(0)] = 0.1


def condition(embeddings: Float[Tensor, "k d"], counts: Sequence[int]) -> Float[Tensor, " d"]:
    """R2: sum_c pi_c E_c.

    Args:
        embeddings: E.
        counts: how often each class is there, at least one once; classes that are left out at the end are not.
    """
    shares = torch.zeros(len(embeddings), dtype=torch.float64)
    shares[: len(counts)] = torch.tensor(counts, dtype=torch.float64)
    return (shares / shares.sum() @ embeddings.double()).to(embeddings.dtype)


def angular(
    rows: Float[Tensor, "n d"], embeddings: Float[Tensor, "m k d"], targets: Int64[Tensor, " n"]
) -> Float[Tensor, " n"]:
    """R3: the cross-entropy of each row's cosines with its client's embeddings, in nats.

    Args:
        rows: V(z, g) of m clients, as many of each, one client after the other.
        embeddings: E of each client.
        targets: classes.
    """
    apart = normalize(rows, dim=-1).view(len(embeddings), -1, rows.shape[-1])
    cosines = apart @ normalize(embeddings, dim=-1).transpose(1, 2)
    return cross_entropy(cosines.flatten(0, 1), targets, reduction="none")


def distance(
    rows: Float[Tensor, "n d"], goals: Float[Tensor, "m k d"], targets: Int64[Tensor, " n"], batch: Batch
) -> Float[Tensor, " m"]:
    """R3: |V(z, g) - E0_y|_F of each client's batch, without fillers.

    Args:
        rows: V(z, g), one or several of each sample.
        goals: E0 of each client.
        targets: classes.
        batch: the samples.
    """
    m, classes = goals.shape[:2]
    first = torch.arange(m, device=rows.device).repeat_interleave(len(rows) // m) * classes
    apart = (rows - goals.flatten(0, 1)[first + targets]).view(m, -1, rows.shape[-1])
    if batch.real is not None:
        apart = apart * batch.real.repeat_interleave(apart.shape[1] // batch.real.shape[1], 1)[..., None]
    found: Tensor = torch.linalg.vector_norm(apart.flatten(1), dim=1)
    return found


class Guided(OwnLoss):
    """R3: the three losses.

    Args:
        head: name of the last linear layer, which has a valve and embeddings as parts.
        embeddings: E0, those that came: [K, d].
        magnitude: lambda.
    """

    def __init__(self, head: str, embeddings: Float[Tensor, "k d"], magnitude: float) -> None:
        super().__init__({"goals": embeddings, "common": embeddings.mean(0)})
        self._head, self._magnitude = head, magnitude

    def of(self, model: nn.Module, batch: Batch, values: Mapping[str, Tensor]) -> Float[Tensor, " m"]:
        """The sum of the three losses of each client."""
        seen, outputs = features(model, self._head, batch.x)
        head, targets = model.get_submodule(self._head), batch.y.flatten()
        assert isinstance(head, ValveHead)
        rows: Tensor = head.valve(seen, values["common"]).float().flatten(0, -2)
        embeddings = head.embeddings.weight.view(batch.clients, -1, rows.shape[-1])
        personal = cross_entropy(outputs.float().flatten(0, -2), targets, reduction="none")
        losses = batch.means(personal + angular(rows, embeddings.float(), targets))
        return losses + self._magnitude * distance(rows, values["goals"], targets, batch)


class Decay:
    """R3: weight decay of some parameters, as a term of the gradient; the same for one client and for many.

    Args:
        names: of the parameters.
        rate: mu.
    """

    def __init__(self, names: Collection[str], rate: float) -> None:
        self._names, self._rate = frozenset(names), rate

    def __call__(self, name: str, param: Tensor, gradient: Tensor) -> None:
        """Add mu times the parameter, if it is one of those, to its gradient in place."""
        if name in self._names:
            gradient.add_(param, alpha=self._rate)

    def stacked(self, terms: Sequence[Decay]) -> Decay:
        """One term for several clients, all of which have the same."""
        return self


def split(manifest: Manifest, _settings: object) -> Split:
    """The last layer group of the network and the condition stay with the client."""
    return split_groups(manifest, (head_group(manifest).name, CONDITION))


def condition_name(manifest: Manifest) -> str:
    """Name of p_k in the model."""
    return f"{head_name(manifest)}.condition.value"


def network(_settings: object) -> NetworkNeeds:
    """A valve, embeddings of the classes and a condition in the last layer."""
    return NetworkNeeds(head=HeadSettings("valve", 'strategy="gpfl"'))


CODE = "the authors' code"
METHOD = Method(
    "strategies.gpfl:GPFLStrategy",
    "clients.gpfl:GPFLClient",
    split,
    GPFLSettings,
    averages=True,
    network=network,
    search={
        "gpfl.magnitude": Choice((0.0, 0.0001, 0.01, 0.1), start=0.01, source=CODE),
        "gpfl.decay": Choice((0.0, 0.01, 0.1, 1.0), start=0.1, source=CODE),
    },
)
