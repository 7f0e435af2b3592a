"""FedGH: the server trains one last layer on the class means of all clients' features; their networks may differ.

Source: Yi, Wang, Liu, Shi, Yu, "FedGH: Heterogeneous Federated Learning with Generalized Global Header", ACM Multimedia
2023, arXiv:2303.13137, and the authors' code, LipingYi/FedGH. Symbols: phi_i the body of client i, theta the last
layer, the header, d its inputs, z = f_i(x) in R^d features, r_i^c the mean of z over client i's training samples of
class c, eta_s the server's learning rate. Shape letters: p pairs of a mean and a class, k classes.

Identity card
    shared      the last layer, theta, by the server's training; nothing of a network is sent to it
    personal    every other layer group, phi_i, of a network that may be the client's own (`client-models`)
    lives       phi_i with the client, theta on the server; what a client makes of theta the next theta replaces
    down, up    k d + k floats down and k d + k up for every client of the cohort and round
    cost        FedAvg's on the client, and a pass for features; server: 2 k d multiply-adds for each pair and epoch,
                and k d for each step
    server sees the mean of a client's features in each class, and which classes it has; the mean of a class with one
                sample is that sample's features, which `fedgh.min-samples` withholds
    peers see   theta, which is trained on all means
    bound       a pair moves theta by at most sqrt(2) eta_s / b times the length of (r, 1) in each epoch, with b pairs
                in its batch; a client has a pair for each class, whatever its samples; means are refused if they are
                longer than 1e6

The round
    R1  server: choose S, send theta to each of its clients                     strategies/fedgh.py
    R2  client: put theta in the place of its last layer                        clients/fedgh.py
    R3  client: (phi_i, theta_i) <- E epochs of SGD on L_i                      clients/fedgh.py
    R4  client: r_i^c <- mean of f_i(x) over its training samples of class c    `fedpac.class_means`
    R5  client: keep (phi_i, theta_i), send r_i^c of classes with `min-samples`            clients/fedgh.py
    R6  server: theta <- epochs of SGD on the cross-entropy of theta(r_i^c) and c      `train_header`

A client uses (phi_i, theta_i), the model after its training, which the authors' code scores; the one before, its body
with the common theta, is scored as well. theta begins as the first last layer of the largest network. A client that has
not trained yet has the first body.

R6 in detail is that of HtFLlib, whose tables have FedGH: `server-epochs` passes over all pairs in a new order, in
batches of `batch-size`, by plain SGD, with its values. The authors' code makes one pass, a pair at a time, with steps
of an optimiser that holds a client's network and not theta, so that theta stays what it was first; that is not repeated
here. Its means are means of batches' means; these are of all samples of a class.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from annotated_types import Ge, Gt
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn.functional import one_hot

from fedham_flwr.core.methods import Method, NetworkNeeds, Split, never, split_groups
from fedham_flwr.core.parameters import Manifest, Params
from fedham_flwr.core.search_space import Range
from fedham_flwr.models.heads import HeadSettings, head_name

PARTS = ("weight", "bias")
"""Names of the header's tensors, the second of which it need not have."""


@dataclass(frozen=True)
class FedGHSettings:
    """Settings under `fedgh.`.

    Attributes:
        server_rate: eta_s, > 0.
        server_epochs: passes over all means of a round.
        min_samples: a client sends no mean of a class of which it has fewer training samples, >= 1.
    """

    server_rate: Annotated[float, Gt(0)] = 0.01
    server_epochs: Annotated[int, Gt(0)] = 100
    min_samples: Annotated[int, Ge(1)] = 1


def slopes(
    header: Params, means: Float[Tensor, "b d"], classes: Int64[Tensor, " b"]
) -> tuple[Float[Tensor, "k d"], Float[Tensor, " k"]]:
    """The gradient of the mean cross-entropy of a linear layer, for its weight and its bias.

    Args:
        header: theta, with `PARTS`.
        means: r of a batch.
        classes: theirs.
    """
    logits = means @ header["weight"].T + header.get("bias", 0.0)
    wrong = (logits.softmax(1) - one_hot(classes, logits.shape[1])) / len(means)
    return wrong.T @ means, wrong.sum(0)


def train_header(
    header: Params,
    means: Float[Tensor, "p d"],
    classes: Int64[Tensor, " p"],
    rate: float,
    epochs: int,
    batch: int,
    draw: torch.Generator,
) -> Params:
    """R6: theta after SGD over pairs of a mean and a class, in float64.

    Args:
        header: theta, with `PARTS`; it does not change.
        means: r, float64, p >= 1.
        classes: theirs.
        rate: eta_s.
        epochs: passes.
        batch: pairs of a step.
        draw: orders the pairs of each pass.
    """
    now = {name: tensor.double() for name, tensor in header.items()}
    for _ in range(epochs):
        for chosen in torch.split(torch.randperm(len(means), generator=draw), batch):
            for name, slope in zip(PARTS, slopes(now, means[chosen], classes[chosen]), strict=True):
                if name in now:
                    now[name] = now[name] - rate * slope
    return {name: tensor.float() for name, tensor in now.items()}


def header_names(manifest: Manifest) -> dict[str, str]:
    """The tensors of the last layer: its names in `PARTS` -> those in the model.

    Args:
        manifest: the model's.
    """
    head = head_name(manifest)
    return {part: f"{head}.{part}" for part in PARTS if f"{head}.{part}" in manifest.shapes}


def split(manifest: Manifest, _settings: object) -> Split:
    """No tensor of the model is sent: the header comes from the server, under names that all networks have alike."""
    return split_groups(manifest, manifest.group_names)


def network(_settings: object) -> NetworkNeeds:
    """A last layer that is linear, whose inputs are the features."""
    return NetworkNeeds(head=HeadSettings(asks='strategy="fedgh"'))


METHOD = Method(
    "strategies.fedgh:FedGHStrategy",
    "clients.fedgh:FedGHClient",
    split,
    FedGHSettings,
    personal_model="after",
    network=network,
    own_networks=True,
    extras="the mean of a client's features in each class, and which classes it has; the mean of a class with one "
    "sample is that sample's features, which `fedgh.min-samples` withholds",
    counts_samples=never,
    search={
        "fedgh.server-rate": Range(0.001, 0.1, start=0.01, log=True, source="HtFLlib"),
        "fedgh.server-epochs": Range(1, 300, start=100, log=True, whole=True, source="HtFLlib"),
    },
)
