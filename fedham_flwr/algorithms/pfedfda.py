"""pFedFDA: a common Gaussian of each class's features, from which each client makes a last layer for its own data.

Source: McLaughlin, Su, "Personalized Federated Learning via Feature Distribution Adaptation", NeurIPS 2024,
arXiv:2411.00329. Symbols: theta the body, z in R^d its features, (mu_c, Sigma) the common means of classes and their
covariance, (mu_ic, Sigma_i) those of client i, pi_ic its shares of classes, m_i its training samples, b1, b2 in [0, 1]
how much of the client's own means and covariance it takes. Shape letters: s samples, d features, k classes.

Identity card
    shared      every layer group but the last one, theta, and the common Gaussian (mu, Sigma)
    personal    the last layer, made anew from the client's training data whenever theta comes
    lives       theta, mu, Sigma on the server; the last layer with the client, which makes it anew all the same
    down, up    the scalars of theta and k d + d^2 more, each way, for every client of the cohort and round
    cost        FedAvg's, two passes for features and some dozens of solutions of d equations, in evaluations too
    server sees its body, and the means of its features in each class and their covariance, mixed with the common ones;
                where b1 = 1, the mean of a class with three samples is that of these
    peers see   the mean of the bodies, and the means of what clients say of their features
    bound       p C for the body; the Gaussian moves by p times as far as the bad client's is away, which is not
                clipped, and with it the layer that others train under; their own takes of it what their data choose

The round
    R1  server: choose S, send theta, mu and Sigma to each of its clients       strategies/pfedfda.py
    R2  client: last layer <- W_c = S^-1 mu_c, beta_c = -<mu_c, W_c>/2 + log pi_ic of the common Gaussian      `layer`
    R3  client: theta_i <- E epochs of SGD on L_i with that layer frozen        clients/pfedfda.py
    R4  client: (mu_i, Sigma_i) from its features under theta_i                 `estimate`
    R5  client: b1, b2 <- smallest cross-entropy on each half of its data of a layer made with the other     `fitted`
    R6  client: mu^ = b1 mu_i + (1 - b1) mu, Sigma^ likewise with b2; send theta_i, mu^, Sigma^ and m_i    `between`
    R7  server: theta, mu, Sigma <- means of theta_i, mu^ and Sigma^, weighted by m_i   strategies/pfedfda.py

S = (1 - e) Sigma + e (tr Sigma / d) I, with e the `shrinkage`. The layer that a client uses is that of (mu^, Sigma^):
R4 to R6 under the theta that came, from training data alone, or after training. A class of fewer than three samples
takes the common mean. The common Gaussian starts with means drawn from [0, 1) and Sigma = I.

Deviations. Features are those under the trained theta, in one pass; the authors collect them while it is trained. b is
found by projected gradient; the authors' L-BFGS cuts b off at 0 and 1, beyond which there is no slope to come back. In
their training a class that is there has its own mean whatever the number of its samples, and the common one takes its
place only in evaluations. To Sigma_i their code adds I, which the default `ridge` does, and 0.0001 in every entry. The
layer is the larger the less features of a class spread, and it is what the body is trained under: in a run with 45
samples a client, features grew without bound with a `ridge` of 0. 0.1 and 0.94 were level by validation.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Literal, NamedTuple

import torch
from annotated_types import Ge, Gt, Lt
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn.functional import cross_entropy

from fedham_flwr.algorithms.fedpac import class_means, head_group
from fedham_flwr.core.errors import UserError
from fedham_flwr.core.methods import Method, NetworkNeeds, Split, split_groups
from fedham_flwr.core.parameters import Manifest
from fedham_flwr.core.search_space import Range
from fedham_flwr.models.heads import HeadSettings, head_name

LEAST_SAMPLES = 3
"""Of a class, below which its mean is the common one."""
LEAST_SHARE = 1e-4
"""Added to each class's share before the shares are made to sum to 1: no class is impossible."""
STEPS, HALVINGS, LEAST_GAIN = 20, 20, 1e-7
"""The most steps of the search for b1 and b2 and halvings of a step, and the gain in nats with which it ends."""
FLOOR = 1e-8
"""Added to S's diagonal: of features that are all 0 there is a layer, too."""


@dataclass(frozen=True)
class PFedFDASettings:
    """Settings under `pfedfda.`.

    Attributes:
        shrinkage: e, of a covariance towards a multiple of I when a layer is made of it, in (0, 1).
        ridge: what is added to the diagonal of a client's own covariance, >= 0.
        interpolation: b1 and b2 are fitted by cross-validation, or both 0 (global) or 1 (own).
    """

    shrinkage: Annotated[float, Gt(0), Lt(1)] = 1e-4
    ridge: Annotated[float, Ge(0)] = 1.0
    interpolation: Literal["fitted", "global", "own"] = "fitted"


class Gaussian(NamedTuple):
    """Means of classes, and the covariance that all classes have.

    Attributes:
        means: float64 [k, d].
        covariance: float64 [d, d].
    """

    means: Tensor
    covariance: Tensor


def log_priors(counts: Float[Tensor, " k"]) -> Float[Tensor, " k"]:
    """The log of pi_ic, of shares that are all above 0.

    Args:
        counts: samples of each class, at least one in all.
    """
    shares = counts / counts.sum() + LEAST_SHARE
    return (shares / shares.sum()).log()


def layer(
    of: Gaussian, priors: Float[Tensor, " k"], shrinkage: float
) -> tuple[Float[Tensor, "k d"], Float[Tensor, " k"]]:
    """R2: weight and bias of linear discriminant analysis.

    Args:
        of: means and covariance.
        priors: log pi_ic.
        shrinkage: e.
    """
    ridge = shrinkage * of.covariance.diagonal().mean() + FLOOR
    factor = torch.linalg.cholesky((1 - shrinkage) * of.covariance + ridge * torch.eye(len(of.covariance)).double())
    weight = torch.cholesky_solve(of.means.T, factor).T
    return weight, priors - (of.means * weight).sum(1) / 2


def estimate(seen: Float[Tensor, "s d"], targets: Int64[Tensor, " s"], common: Gaussian, ridge: float) -> Gaussian:
    """R4: a client's own Gaussian, with s - 1 in the denominator of the covariance.

    Args:
        seen: features, float64, s >= 1.
        targets: their classes.
        common: of which the means of classes with few samples are.
        ridge: what is added to the diagonal.
    """
    means, counts = class_means(seen, targets, len(common.means))
    means = torch.where((counts >= LEAST_SAMPLES)[:, None], means, common.means)
    apart = seen - means[targets]
    return Gaussian(means, apart.T @ apart / max(1, len(seen) - 1) + ridge * torch.eye(seen.shape[1]).double())


def between(own: Gaussian, common: Gaussian, b: Float[Tensor, " b"]) -> Gaussian:
    """R6: b of the client's own and 1 - b of the common, of means (b1) and of the covariance (b2)."""
    return Gaussian(*(part * mine + (1 - part) * theirs for part, mine, theirs in zip(b, own, common, strict=True)))


def halves(targets: Int64[Tensor, " s"], generator: torch.Generator) -> Int64[Tensor, " s"]:
    """Which half each sample is in, 0 or 1: half of each class, but for one; -1 of a class with a single sample.

    Args:
        targets: classes.
        generator: draws them.
    """
    found = torch.full_like(targets, -1)
    for value in torch.unique(targets).tolist():
        (of_class,) = (targets == value).nonzero(as_tuple=True)
        if len(of_class) > 1:
            order = of_class[torch.randperm(len(of_class), generator=generator)]
            found[order] = torch.arange(len(order)) % 2
    return found


def fitted(
    seen: Float[Tensor, "s d"],
    targets: Int64[Tensor, " s"],
    half: Int64[Tensor, " s"],
    common: Gaussian,
    settings: PFedFDASettings,
) -> Float[Tensor, " b"]:
    """R5: b1 and b2 by projected gradient from 1/2; 0 if there is nothing to fit them with.

    Args:
        seen: features, float64.
        targets: their classes.
        half: as `halves` gives them.
        common: the common Gaussian.
        settings: the method's own.
    """
    if not bool((half >= 0).any()):
        return torch.zeros(2, dtype=torch.float64)
    priors = log_priors(torch.bincount(targets, minlength=len(common.means)).double())
    folds = [
        (estimate(seen[half == 1 - at], targets[half == 1 - at], common, settings.ridge), half == at) for at in (0, 1)
    ]

    def loss(b: Tensor) -> Tensor:
        layers = [(layer(between(own, common, b), priors, settings.shrinkage), at) for own, at in folds]
        terms = [cross_entropy(seen[at] @ weight.T + bias, targets[at]) for (weight, bias), at in layers]
        return torch.stack(terms).sum()

    return _descend(loss, torch.full((2,), 0.5, dtype=torch.float64))


def _descend(loss: Callable[[Tensor], Tensor], start: Tensor) -> Tensor:
    """A point of [0, 1]^2 that projected gradient reaches; each of its steps lowers the loss."""
    at, pace = start, 1.0
    for _ in range(STEPS):
        with torch.enable_grad():
            value = loss(free := at.clone().requires_grad_())
            (slope,) = torch.autograd.grad(value, free)
        for _ in range(HALVINGS):
            ahead = (at - pace * slope).clamp(0, 1)
            gain = float(slope @ (at - ahead))
            if gain < LEAST_GAIN:
                return at
            if value.item() - loss(ahead).item() >= gain / 4:
                break
            pace /= 2
        else:
            return at
        at, pace = ahead, 4 * pace
    return at


def check_target(target: str) -> None:
    """Refuse what is no single class of each sample.

    Raises:
        UserError: it is something else.
    """
    if target != "class":
        raise UserError(f'strategy="pfedfda" is for one class of each sample, and the target is {target}')


def split(manifest: Manifest, _settings: object) -> Split:
    """The last layer stays with the client.

    Raises:
        UserError: it is the only one, or has no bias.
    """
    group = head_group(manifest, 'strategy="pfedfda"')
    if f"{head_name(manifest)}.bias" not in manifest.shapes:
        raise UserError(f'strategy="pfedfda" needs a last layer with a bias, and {group} has none')
    return split_groups(manifest, (group,))


def network(_settings: object) -> NetworkNeeds:
    """A last layer that is linear."""
    return NetworkNeeds(head=HeadSettings(asks='strategy="pfedfda"'))


METHOD = Method(
    "strategies.pfedfda:PFedFDAStrategy",
    "clients.pfedfda:PFedFDAClient",
    split,
    PFedFDASettings,
    network=network,
    extras="the means of its features in each class and their covariance, mixed with the common ones; where b1 = 1, "
    "the mean of a class with three samples is that of these",
    search={
        "pfedfda.shrinkage": Range(1e-4, 0.1, start=1e-4, log=True, source="the authors' code"),
        "pfedfda.ridge": Range(0.01, 10.0, start=1.0, log=True, source="the authors' code"),
    },
)
