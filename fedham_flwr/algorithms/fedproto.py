"""FedProto: clients share the means of their features in each class, and their networks may differ.

Source: Tan, Long, Liu, Zhou, Lu, Jiang, Zhang, "FedProto: Federated Prototype Learning across Heterogeneous Clients",
AAAI 2022, arXiv:2105.00243, equations 3 to 8, and the authors' code, yuetan031/FedProto. Symbols: phi_i the body of
client i, nu_i its last layer, z = f_i(x) in R^d features, n_ij its training samples of class j, C_i^j its prototype of
class j, the mean of z, C^j the global one, lambda the pull to it. Shape letters: m clients, s predictions, k classes.

Identity card
    shared      nothing of a network; prototypes, which need d alike and no more
    personal    every layer group, phi_i and nu_i, of a network that may be the client's own (`client-models`); the
                personal model is phi_i with the global prototypes in the last layer, the nearest of which it predicts
    lives       phi_i and nu_i with the client, C on the server
    down, up    k d floats down and k d + k up for every client of the cohort and round
    cost        FedAvg's on the client, and a pass for features; server: m k d additions
    server sees the mean of a client's features in each class, and the shares of its classes; the mean of a class with
                one sample is that sample's features, which `fedproto.min-samples` withholds
    peers see   the means of prototypes; the prototype of a class that one client alone has is that client's
    bound       of each prototype its client's share of the class (1 for a class of its own) times how far its mean is;
                means are refused if they are longer than 1e6; prototypes pull others' features, and predict for them

The round
    R1  server: choose S, send C to each of its clients                         strategies/fedproto.py
    R2  client: (phi_i, nu_i) <- E epochs of SGD on L_i + lambda mean_d (z - C^y)^2 (7, 8)   `TowardsPrototypes`
    R3  client: C_i^j <- mean of f_i(x) over its training samples of class j (3)      `fedpac.class_means`
    R4  client: keep (phi_i, nu_i), send C_i and n_ij / n_i, of classes with `min-samples`      `to_send`
    R5  server: C^j <- sum_i n_ij C_i^j / sum_i n_ij, over those in S that sent one (6)         `merged`
    R6  client: predict argmin_j |f_i(x) - C^j|^2 (4)                           `nearest_layer`

With lambda = 0 clients train as `local` does, bit for bit. In the first round nothing pulls, and the own nu_i predicts;
nor does a class pull of which nobody has sent a prototype yet. For such a class a client that has it predicts by its
own, C_i^j; nobody else predicts it. Of a class of which nobody in S sends one the global prototype stays, which the
authors' code, with everybody in S, need not do. A novel client begins with the first network and the last prototypes.

Logits are z C^j - |C^j|^2 / 2, the logarithm of a normal density with unit variance around C^j but for what is the same
for all j: a linear layer, so that a model is scored, exported and predicts as it is. It needs a bias. With
`predict="head"` nu_i predicts, which the authors' code scores too. With prototypes that code asks for the nearest of
the classes that the client itself has, and HtFLlib's, like equation 4 and this, for the nearest of all.

The paper's equation 6 has a factor 1 / |N_j|, the number of clients with class j, before a sum whose weights n_ij / N_j
sum to 1 already: prototypes would be |N_j| times too short, and it is left out. The authors' code takes the plain mean
over clients, as `weights="clients"` does. Equation 8 leaves the distance open; it is that code's, the mean squared one
of each sample. That code takes prototypes along in training, of features before each step; here, as in equation 3, they
are of the trained body.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from annotated_types import Ge
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from fedham_flwr.core.errors import UserError
from fedham_flwr.core.methods import Method, NetworkNeeds, Split, split_groups
from fedham_flwr.core.parameters import Manifest
from fedham_flwr.core.search_space import Range
from fedham_flwr.models.heads import HeadSettings, features, head_name
from fedham_flwr.training.own_loss import Batch, OwnLoss

NEVER = 50.0
"""By how much the logit of a class without a prototype is below that of one with: it never wins, and has a loss."""


@dataclass(frozen=True)
class FedProtoSettings:
    """Settings under `fedproto.`.

    Attributes:
        penalty: lambda, >= 0, of the mean squared distance of features to the prototype of their class.
        predict: by the nearest global prototype, or by the client's own last layer (head).
        weights: of clients in a global prototype: their samples of the class, or the same for all (clients).
        min_samples: a client sends no prototype of a class of which it has fewer training samples, >= 1.
    """

    penalty: Annotated[float, Ge(0)] = 1.0
    predict: Literal["prototypes", "head"] = "prototypes"
    weights: Literal["samples", "clients"] = "samples"
    min_samples: Annotated[int, Ge(1)] = 1


# ---- client ----------------------------------------------------------------------------------------------------------


class TowardsPrototypes(OwnLoss):
    """R2: the cross-entropy, and lambda times the mean squared distance of features to the prototype of their class.

    Args:
        head: name of the last linear layer.
        prototypes: C, float32 [k, d] where the model is.
        known: float32 [k], 1 for a class that has a prototype, and 0 for one that does not pull.
        penalty: lambda.
    """

    def __init__(self, head: str, prototypes: Tensor, known: Tensor, penalty: float) -> None:
        super().__init__({"prototypes": prototypes, "known": known})
        self._head, self._penalty = head, penalty

    def of(self, model: nn.Module, batch: Batch, values: Mapping[str, Tensor]) -> Float[Tensor, " m"]:
        """The mean of both of each client."""
        seen, logits = features(model, self._head, batch.x)
        targets = batch.y.flatten()
        own = torch.arange(batch.clients, device=targets.device).repeat_interleave(len(targets) // batch.clients)
        apart = (seen.float().flatten(0, -2) - values["prototypes"][own, targets]).square().mean(-1)
        fit = cross_entropy(logits.float().flatten(0, -2), targets, reduction="none")
        return batch.means(fit + self._penalty * values["known"][own, targets] * apart)


def to_send(
    means: Float[Tensor, "k d"], counts: Float[Tensor, " k"], least: int
) -> tuple[Float[Tensor, "k d"], Float[Tensor, " k"]]:
    """R4: the prototypes that leave a client and the shares of their classes, 0 for classes that are withheld.

    Args:
        means: C_i, of all classes.
        counts: n_ij.
        least: samples that a class must have.
    """
    enough = counts >= least
    return means * enough[:, None], counts * enough / counts.sum()


def nearest_layer(
    prototypes: Float[Tensor, "k d"], known: Bool[Tensor, " k"]
) -> tuple[Float[Tensor, "k d"], Float[Tensor, " k"]]:
    """R6: weight and bias of a linear layer whose largest output is that of the nearest prototype.

    A class without one has the logit of the first that has one, less `NEVER`.

    Args:
        prototypes: C.
        known: of which classes there is one; of at least one.
    """
    bias = -prototypes.double().square().sum(1).float() / 2
    first = int(known.int().argmax())
    weight = torch.where(known[:, None], prototypes, prototypes[first])
    return weight, torch.where(known, bias, bias[first] - NEVER)


# ---- server ----------------------------------------------------------------------------------------------------------


def merged(
    means: Float[Tensor, "m k d"], counts: Float[Tensor, "m k"], weights: str
) -> tuple[Float[Tensor, "k d"], Bool[Tensor, " k"]]:
    """R5: C, and of which classes somebody has sent a prototype.

    Args:
        means: C_i, float64.
        counts: n_ij >= 0, float64; 0 for a prototype that was not sent.
        weights: as the setting.
    """
    of = counts if weights == "samples" else (counts > 0).to(counts.dtype)
    totals = of.sum(0)
    return (of[..., None] * means).sum(0) / totals.clamp(min=1e-12)[:, None], totals > 0


# ---- declaration -----------------------------------------------------------------------------------------------------


def split(manifest: Manifest, settings: FedProtoSettings) -> Split:
    """All layer groups stay with the client.

    Raises:
        UserError: prototypes are to predict, and the last layer has no bias.
    """
    if settings.predict == "prototypes" and f"{head_name(manifest)}.bias" not in manifest.shapes:
        raise UserError(
            'fedproto.predict="prototypes" writes class means into the last layer, which has no bias in this network: '
            'wanted another network, or fedproto.predict="head"'
        )
    return split_groups(manifest, manifest.group_names)


def network(_settings: object) -> NetworkNeeds:
    """A last layer that is linear, whose inputs are the features."""
    return NetworkNeeds(head=HeadSettings(asks='strategy="fedproto"'))


def counts_samples(settings: FedProtoSettings) -> bool:
    """Whether a prototype weighs as many samples as it is made of."""
    return settings.weights == "samples"


METHOD = Method(
    "strategies.fedproto:FedProtoStrategy",
    "clients.fedproto:FedProtoClient",
    split,
    FedProtoSettings,
    network=network,
    own_networks=True,
    extras="the mean of a client's features in each class, and the shares of its classes; the mean of a class with one "
    "sample is that sample's features, which `fedproto.min-samples` withholds",
    counts_samples=counts_samples,
    search={"fedproto.penalty": Range(0.01, 10.0, start=1.0, log=True, source="the authors' code")},
)
