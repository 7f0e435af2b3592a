"""What a server may make of its clients' models beside their mean: rules that a few bad clients cannot lead away.

Of n models f may be anything; x_k is a number of client k's model, and x_(1) <= ... <= x_(n) are these in order.

    (1) median        the middle one of x_(1), ..., x_(n), and the mean of the two middle ones for an even n
    (2) trimmed mean  the mean of x_(c+1), ..., x_(n-c), with c = ceil(trim n)
    (3) Krum          the model k with the smallest s(k) = sum of |w_k - w_j|^2 over the n - f - 2 models j != k that
                      are nearest to it
    (4) multi-Krum    the mean of the m models with the smallest s(k)

(1), (2): Yin, Chen, Ramchandran, Bartlett, "Byzantine-Robust Distributed Learning: Towards Optimal Statistical Rates",
ICML 2018, arXiv:1803.01498, definitions 1 and 2. (3), (4): Blanchard, El Mhamdi, Guerraoui, Stainer, "Machine Learning
with Adversaries: Byzantine Tolerant Gradient Descent", NeurIPS 2017, arXiv:1703.02757, which wants 2 f + 2 < n. There
they are rules for gradients; all models here start from the same one, so that differences are the same.

As in these papers each model counts once, however many samples it is made of: who could say that it has more would have
more weight. The papers leave open what share of n models is when it is no whole number: c is rounded up, so that at
least the share is cut; and of equal s(k) the first client's is taken. Running statistics are numbers like the others,
also in distances: a client that sends false ones is far away. Every rule gives each number between the smallest and
the largest that was sent, so variances stay variances.

What a rule withstands: with f bad ones, (1) gives each number between the (f+1)-th smallest and largest of all n if
2 f < n, and (2) if f <= c; between honest ones, then. (3) gives one client's model, which may be a bad one near enough
to honest ones.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from annotated_types import Ge, Gt, Le, Lt
from torch import Tensor

from fedham_flwr.core.parameters import Params
from fedham_flwr.core.trees import weighted_mean

CHUNK = 1 << 22
"""Numbers that are side by side in memory at a time, of all models together."""
ROUNDING = 1e-9
"""By which a share of n models may be above a whole number that it is meant to be."""

KRUM = ("krum", "multi-krum")


@dataclass(frozen=True)
class ServerSettings:
    """Settings under `server.`, of methods whose server takes a mean of models.

    Attributes:
        aggregation: what is made of the clients' models.
        trim: trimmed-mean: share of the models that is cut at each end.
        bad_clients: krum, multi-krum: f, how many clients of a round may send anything.
        selected: multi-krum: m, of how many models the mean is taken; 0 for all but f.
        optimizer: what the server does with the way from its model to that aggregate; none takes the aggregate.
        learning_rate: of the optimiser, in [0, 1e6]; 0 for 1 with momentum and 0.01 with the others.
        momentum: decay of the mean step, in [0, 1).
        beta2: adam, yogi: decay of the mean squared step, in [0, 1).
        tau: adam, yogi, adagrad: added to the root of the mean squared step, > 0.
    """

    aggregation: Literal["mean", "median", "trimmed-mean", "krum", "multi-krum"] = "mean"
    trim: Annotated[float, Ge(0), Lt(0.5)] = 0.1
    bad_clients: Annotated[int, Ge(0)] = 1
    selected: Annotated[int, Ge(0)] = 0
    optimizer: Literal["none", "momentum", "adam", "yogi", "adagrad"] = "none"
    learning_rate: Annotated[float, Ge(0), Le(1e6)] = 0.0
    momentum: Annotated[float, Ge(0), Lt(1)] = 0.9
    beta2: Annotated[float, Ge(0), Lt(1)] = 0.99
    tau: Annotated[float, Gt(0)] = 1e-3


def faults(settings: ServerSettings, epsilon: float) -> list[str]:
    """What does not fit together, a sentence each.

    Args:
        settings: the settings.
        epsilon: the setting `dp.epsilon`.
    """
    if epsilon and settings.aggregation == "krum":
        return [
            f'dp.epsilon={epsilon:g} adds noise that averages out over clients, and server.aggregation="krum" takes '
            "the model of one client, with all of its noise: wanted another of the two"
        ]
    return []


def cut(trim: float, count: int) -> int:
    """(2): c, how many of so many models are cut at each end."""
    return math.ceil(trim * count - ROUNDING)


def shortage(settings: ServerSettings, count: int) -> str:
    """Why so many models are too few for the rule; empty if they are enough.

    Args:
        settings: the settings.
        count: n.
    """
    rule, bad, wanted = f'server.aggregation="{settings.aggregation}"', settings.bad_clients, settings.selected
    if settings.aggregation == "trimmed-mean" and 2 * (each := cut(settings.trim, count)) >= count:
        return f"{rule} with server.trim={settings.trim:g} cuts {each} of {count} at each end, which leaves none"
    if settings.aggregation in KRUM and count < 2 * bad + 3:
        return f"{rule} with server.bad-clients={bad} needs at least {2 * bad + 3}"
    if settings.aggregation == "multi-krum" and count < wanted + bad:
        return (
            f"{rule} with server.selected={wanted} and server.bad-clients={bad} needs at least {wanted + bad}, or it "
            "would have to take bad ones"
        )
    return ""


def robust(models: Sequence[Mapping[str, Tensor]], settings: ServerSettings) -> Params:
    """(1) to (4), by `settings.aggregation`, which is not mean.

    Args:
        models: n trees of finite tensors with the same names and shapes, in a fixed order of clients.
        settings: the settings.

    Returns:
        New tensors.

    Raises:
        ValueError: the models are too few.
    """
    if why := shortage(settings, len(models)):
        raise ValueError(f"{len(models)} models: {why}")
    if settings.aggregation in KRUM:
        most = 1 if settings.aggregation == "krum" else settings.selected or len(models) - settings.bad_clients
        chosen = krum(models, settings.bad_clients, most)
        return weighted_mean([models[k] for k in chosen], [1.0] * most)
    each = (len(models) - 1) // 2 if settings.aggregation == "median" else cut(settings.trim, len(models))
    return {name: _trimmed(models, name, each) for name in models[0]}


def krum(models: Sequence[Mapping[str, Tensor]], bad: int, most: int) -> list[int]:
    """(3), (4): which models are nearest to others, in the order given.

    Args:
        models: n >= 2 bad + 3 trees.
        bad: f.
        most: m.
    """
    apart = squared_distances(models).fill_diagonal_(math.inf)
    nearest = apart.sort(dim=1).values[:, : len(models) - bad - 2]
    return sorted(nearest.sum(1).argsort(stable=True)[:most].tolist())


def squared_distances(models: Sequence[Mapping[str, Tensor]]) -> Tensor:
    """|w_i - w_j|^2 over all tensors together: float64 [n, n].

    Of differences, never of products: one huge model would leave nothing of the digits of the others' distances.
    """
    total = torch.zeros(len(models), len(models), dtype=torch.float64)
    for name in models[0]:
        for some in _beside(models, name):  # [c, n]
            rows = some.double().T.contiguous()
            total += torch.cdist(rows, rows, compute_mode="donot_use_mm_for_euclid_dist").square_()
    return total


def _trimmed(models: Sequence[Mapping[str, Tensor]], name: str, each: int) -> Tensor:
    """The mean of what is left of each number when so many are cut at each end; (1) if 1 or 2 are left."""
    found = torch.empty(models[0][name].numel(), dtype=models[0][name].dtype)
    at, left = 0, len(models) - 2 * each
    for some in _beside(models, name):
        ordered = some.sort(dim=1).values
        total = torch.zeros(len(some), dtype=torch.float64)
        for column in range(each, each + left):  # one by one: the same sum whatever the threads
            total += ordered[:, column]
        found[at : at + len(some)] = total / left
        at += len(some)
    return found.view(models[0][name].shape)


def _beside(models: Sequence[Mapping[str, Tensor]], name: str) -> Iterator[Tensor]:
    """One tensor of all models side by side, a part at a time: [c, n] with c n <= CHUNK, or c = 1."""
    flat = [model[name].reshape(-1) for model in models]
    width = max(1, CHUNK // len(models))
    for at in range(0, len(flat[0]), width):
        yield torch.stack([one[at : at + width] for one in flat], dim=1)
