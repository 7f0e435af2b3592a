"""kNN-Per: FedAvg's model, whose prediction on each client is mixed with a vote of the client's own nearest samples.

Source: Marfoq, Neglia, Kameni, Vidal, "Personalized Federated Learning through Local Memorization", ICML 2022,
arXiv:2111.09360, Algorithm 1, equation 7, and the authors' code. Symbols: w the global model, phi its features, what
the last linear layer sees, d their number, k the neighbours that vote, lambda_m their share in the prediction of client
m, n_m its training samples, S the cohort of the round, E local epochs.

Identity card
    shared      every layer group
    personal    features of the client's own training samples and their classes; the personal model is w and their vote
    lives       w on the server; the features are made anew, by the client, from the samples that it has
    down, up    P scalars each for every client of the cohort and round
    cost        FedAvg's; an evaluation runs all training samples through the network, and compares each of them with
                each sample that is predicted
    server sees its whole model after each training; never features
    peers see   the mean of the models
    bound       p C for the model; the client's own samples vote, by features of that model

The round
    R1  server: choose S, send w to each of its clients                         strategies/knnper.py
    R2  client: w_m <- E epochs of SGD on L_m from w                            clients/knnper.py
    R3  client: send w_m and n_m; use w, and not w_m                            clients/knnper.py
    R4  server: w <- sum_{m in S} n_m w_m / sum_{m in S} n_m                     `fedavg.aggregate`
    R5  client: to predict x, find N(x), the k nearest of its samples, and let them vote:
        h(y | x) ~ sum_{i in N(x), y_i = y} exp(-|phi(x) - phi(x_i)|^2 / (d scale))   `nearest_vote`
    R6  client: predict lambda_m h(y | x) + (1 - lambda_m) softmax(w(x))(y)  (7)  `voting`

lambda = 0 is FedAvg's global model, not fine-tuned; with lambda = 1 neighbours alone decide. A novel client is scored
before as the paper has it, with the model and its own samples, and after `novel-steps` steps of training.

The paper chooses lambda_m for each client on held-out samples, which `tune_share` does: in tenths, by the accuracy on
the client's validation split and then by its loss, for each model that is scored. By default one lambda is for all, as
in FL-bench, and a study may search it. The kernel, in which the squared distance is divided by d, is that of the
authors' code; its script for CIFAR-10 asks 7 neighbours, FL-bench 5, of at most 500 samples. `capacity` are the
predictions of the training split (of a text one for each position) that are kept, drawn once for each client.

Deviations: the authors' script adds votes to logits, by a default that is always true; the paper, and this, mixes
probabilities. In the paper clients remember once FedAvg is done; here each round's model is evaluated so.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

import torch
from annotated_types import Ge, Gt, Le
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn.functional import one_hot

from fedham_flwr.algorithms.fedavg import split
from fedham_flwr.core.methods import Method, NetworkNeeds
from fedham_flwr.core.search_space import Range
from fedham_flwr.models.heads import HeadSettings, features

QUERIES = 1024
"""Samples that are compared with all of the client's own at once, which bounds memory."""
SHARES = tuple(tenth / 10 for tenth in range(11))
"""Values of lambda_m that a client tries on its validation split."""


@dataclass(frozen=True)
class KNNPerSettings:
    """Settings under `knnper.`.

    Attributes:
        share: lambda, of the neighbours' vote in the prediction, [0, 1].
        tune_share: each client chooses its own on its validation split; one without such samples takes `share`.
        neighbours: k.
        capacity: how many of the client's samples may vote; 0 for all.
        scale: of the kernel, > 0; the larger, the less it matters how near a neighbour is.
    """

    share: Annotated[float, Ge(0), Le(1)] = 0.5
    tune_share: bool = False
    neighbours: Annotated[int, Gt(0)] = 5
    capacity: Annotated[int, Ge(0)] = 0
    scale: Annotated[float, Gt(0), Le(1e6)] = 1.0


def nearest_vote(
    queries: Float[Tensor, "q d"],
    keys: Float[Tensor, "s d"],
    targets: Int64[Tensor, " s"],
    classes: int,
    neighbours: int,
    scale: float = 1.0,
) -> Float[Tensor, "q k"]:
    """R5: the vote of the nearest samples, whose rows sum to 1.

    A neighbour at squared distance D weighs exp(-D / (d scale)).

    Args:
        queries: features of samples to classify.
        keys: features of the client's training samples, s >= 1.
        targets: their classes.
        classes: k.
        neighbours: how many vote; fewer if there are fewer.
        scale: of the kernel.
    """
    squared = torch.cdist(queries, keys).square()
    distance, nearest = squared.topk(min(neighbours, len(keys)), dim=1, largest=False)
    # Softmax is exp(-D/(d scale)) normalised, without underflow where all are far away.
    weights = (-distance / (keys.shape[1] * scale)).softmax(1)
    return (one_hot(targets[nearest], classes) * weights[..., None]).sum(1)


def voting(
    head: str,
    keys: Float[Tensor, "s d"],
    targets: Int64[Tensor, " s"],
    neighbours: int,
    share: float,
    scale: float = 1.0,
) -> Callable[[nn.Module, Tensor], Tensor]:
    """R6: what predicts with a model and a vote; of the model and a batch of inputs, log-probabilities [b, (T,) k].

    Args:
        head: name of the model's last linear layer.
        keys: features of the client's training samples, by the same model.
        targets: their classes.
        neighbours: k.
        share: lambda, of the vote.
        scale: of the kernel.
    """

    def predict(model: nn.Module, x: Tensor) -> Tensor:
        seen, logits = features(model, head, x)
        logits = logits.float()
        votes = [
            nearest_vote(some, keys, targets, logits.shape[-1], neighbours, scale)
            for some in torch.split(seen.float().flatten(0, -2), QUERIES)
        ]
        mixed = share * torch.cat(votes).view_as(logits) + (1 - share) * logits.softmax(-1)
        logs: Tensor = mixed.clamp_min(torch.finfo(mixed.dtype).tiny).log()
        return logs

    return predict


def network(_settings: object) -> NetworkNeeds:
    """A last layer that is linear, whose inputs are the features."""
    return NetworkNeeds(head=HeadSettings(asks='strategy="knnper"'))


METHOD = Method(
    "strategies.knnper:KNNPerStrategy",
    "clients.knnper:KNNPerClient",
    split,
    KNNPerSettings,
    averages=True,
    network=network,
    search={
        "knnper.share": Range(0.0, 1.0, start=0.5, source="FL-bench"),
        "knnper.neighbours": Range(1, 30, start=5, log=True, whole=True, source="FL-bench"),
        "knnper.scale": Range(0.1, 10.0, start=1.0, log=True, source="the authors' code"),
    },
)
