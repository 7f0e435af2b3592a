"""Differential privacy of what a client sends: how much noise, and what a run has spent.

Every message of training is a release by the Gaussian mechanism: the client's update, clipped to the length C, and
normal noise of standard deviation sigma on every number that is sent. With mu = sensitivity / sigma, k releases are

    (1) (epsilon, delta) if and only if Phi(m/2 - epsilon/m) - e^epsilon Phi(-m/2 - epsilon/m) <= delta, m = sqrt(k) mu
    (2) rho-zCDP with rho = k mu^2 / 2, and so (rho + 2 sqrt(rho ln(1/delta)), delta)
    (3) (k epsilon, k delta), if each is (epsilon, delta)

(1): Balle, Wang, "Improving the Gaussian Mechanism for Differential Privacy", ICML 2018, arXiv:1805.06530, theorem 8,
for one release; for k of them Dong, Roth, Su, "Gaussian Differential Privacy", JRSS B 2022, arXiv:1905.02383,
corollaries 2.13 and 3.3. (2): Bun, Steinke, "Concentrated Differential Privacy", TCC 2016, arXiv:1605.02065,
propositions 1.3 and 1.6, lemma 1.7. (3): Dwork, Roth, "The Algorithmic Foundations of Differential Privacy", 2014,
theorem 3.16. The k releases may depend on each other, as rounds do.

sigma is the smallest by (1). The classical sigma = sensitivity sqrt(2 ln(1.25/delta)) / epsilon (Dwork and Roth,
theorem A.1), which Flower's `LocalDpMod` uses, is larger up to epsilon = 1, is proven for epsilon < 1 only, and is
too small for a large epsilon.

The sensitivity is how far apart two updates can be: 2 C, if any data of the client may be replaced by any other (this
is local privacy, and the default), or C, if it is only to be hidden whether there was an update.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Annotated, Protocol

import torch
from annotated_types import Ge, Gt, Le, Lt

STEPS = 200
"""Halvings of an interval, more than a float64 has digits."""


@dataclass(frozen=True)
class PrivacySettings:
    """Settings under `dp.`.

    Attributes:
        epsilon: of each message of training, in [0, 1e6]; 0 is no differential privacy.
        delta: of each message of training, in (0, 1).
        clipping_norm: C, the length that a client's update is clipped to, >= 0.
        sensitivity: how far apart two clipped updates can be, at least C; 0 for 2 C.
    """

    epsilon: Annotated[float, Ge(0), Le(1e6)] = 0.0
    delta: Annotated[float, Gt(0), Lt(1)] = 1e-5
    clipping_norm: Annotated[float, Ge(0)] = 0.0
    sensitivity: Annotated[float, Ge(0)] = 0.0


class Exchange(Protocol):
    """What is read of a round's record."""

    @property
    def kind(self) -> str:
        """Of the exchange; train, if the clients were asked for their models."""

    @property
    def cohort(self) -> Sequence[str]:
        """Ids of the clients that were asked."""


def faults(settings: PrivacySettings, strategy: str, averaging: Sequence[str]) -> list[str]:
    """What does not fit together, a sentence each.

    Args:
        settings: the settings.
        strategy: the run's method.
        averaging: methods whose server needs nothing of a client but a mean with others, in which noise averages out.
    """
    if not settings.epsilon:
        return []
    found = []
    if strategy not in averaging:
        found.append(
            f"dp.epsilon={settings.epsilon:g} is for methods that average ({', '.join(averaging)}), and "
            f'strategy="{strategy}" does not: wanted one of these, or dp.epsilon=0.0'
        )
    if not settings.clipping_norm:
        found.append(
            f"dp.epsilon={settings.epsilon:g} needs dp.clipping-norm, the length that updates are clipped to, above 0"
        )
    elif 0 < settings.sensitivity < settings.clipping_norm:
        found.append(
            f"dp.sensitivity={settings.sensitivity:g} promises too much: an update differs from none by up to "
            f"dp.clipping-norm={settings.clipping_norm:g}: wanted at least that, or 0.0 for twice that"
        )
    return found


def leak(epsilon: float, mu: float) -> float:
    """(1): the smallest delta for an epsilon.

    Args:
        epsilon: >= 0.
        mu: sensitivity / sigma, of all releases together.
    """
    there, here = mu / 2 - epsilon / mu, -mu / 2 - epsilon / mu
    return max(0.0, math.exp(_log_normal(there)) - math.exp(min(0.0, epsilon + _log_normal(here))))


def strength(epsilon: float, delta: float) -> float:
    """The largest mu, so the smallest noise, with which a release is (epsilon, delta).

    Args:
        epsilon: > 0.
        delta: in (0, 1).
    """
    most = 1.0
    while leak(epsilon, most) <= delta:
        most *= 2
    return _last(lambda mu: leak(epsilon, mu) <= delta, 0.0, most)


def noise(settings: PrivacySettings) -> float:
    """sigma, the standard deviation of the noise on every number that is sent."""
    return (settings.sensitivity or 2 * settings.clipping_norm) / strength(settings.epsilon, settings.delta)


def exact_epsilon(mu: float, delta: float) -> float:
    """(1): the smallest epsilon for a delta.

    Args:
        mu: of all releases together, > 0.
        delta: in (0, 1).
    """
    most = zcdp_epsilon(mu, delta)
    return most - _last(lambda less: leak(most - less, mu) <= delta, 0.0, most)


def zcdp_epsilon(mu: float, delta: float) -> float:
    """(2): an epsilon for a delta.

    Args:
        mu: of all releases together.
        delta: in (0, 1).
    """
    rho = mu**2 / 2
    return rho + 2 * math.sqrt(rho * math.log(1 / delta))


def releases(exchanges: Iterable[Exchange], clients: Iterable[str] = (), interruptions: int = 0) -> dict[str, int]:
    """How many messages of training each client may have sent: one for each that it was asked for, sent or not.

    Args:
        exchanges: all of the run, those too that were undone when it was continued.
        clients: all ids.
        interruptions: how often the run ended early; each time every client may have sent one that no record tells of.
    """
    asked = Counter(client for exchange in exchanges if exchange.kind == "train" for client in exchange.cohort)
    return {client: asked[client] + interruptions for client in sorted({*asked, *clients})}


def budget(settings: PrivacySettings, counts: dict[str, int]) -> dict[str, object]:
    """What a run has spent, for `summary.json`; empty if it had no differential privacy.

    Args:
        settings: the run's settings.
        counts: as `releases` gives them.
    """
    if not settings.epsilon:
        return {}
    return {
        "epsilon": settings.epsilon,
        "delta": settings.delta,
        "clipping-norm": settings.clipping_norm,
        "sensitivity": settings.sensitivity or 2 * settings.clipping_norm,
        "sigma": noise(settings),
        "clients": {client: {"releases": k, **spent(settings, k)} for client, k in counts.items()},
    }


def spent(settings: PrivacySettings, count: int) -> dict[str, float | None]:
    """Epsilon of so many releases: exact and by zCDP at `dp.delta`, and by basic composition at the delta beside it.

    Args:
        settings: the run's settings, with an epsilon.
        count: k; 0 spends nothing.
    """
    mu = math.sqrt(count) * strength(settings.epsilon, settings.delta)
    basic = count * settings.delta < 1  # else it says nothing
    return {
        "epsilon": exact_epsilon(mu, settings.delta) if count else 0.0,
        "epsilon-zcdp": zcdp_epsilon(mu, settings.delta) if count else 0.0,
        "epsilon-basic": count * settings.epsilon if basic else None,
        "delta-basic": count * settings.delta if basic else None,
    }


def sentence(settings: PrivacySettings, counts: dict[str, int]) -> str:
    """What the client that sent most has spent, for the end of a run; empty without differential privacy."""
    if not settings.epsilon or not counts:
        return ""
    most = max(counts.values())
    total = spent(settings, most)
    basic = (
        f"epsilon {total['epsilon-basic']:.4g} at delta {total['delta-basic']:.4g}"
        if total["epsilon-basic"] is not None
        else "nothing, since delta is 1"
    )
    return (
        f"privacy: at most {most} releases of a client: epsilon {total['epsilon']:.4g} at delta {settings.delta:g} "
        f"(by zCDP {total['epsilon-zcdp']:.4g}; by basic composition {basic})"
    )


def _log_normal(x: float) -> float:
    """The logarithm of Phi(x), which does not underflow."""
    return float(torch.special.log_ndtr(torch.tensor(x, dtype=torch.float64)))


def _last(holds: Callable[[float], bool], low: float, high: float) -> float:
    """The largest number, from below, up to which a condition holds that holds at `low` and stops once."""
    if holds(high):
        return high
    for _ in range(STEPS):
        middle = (low + high) / 2
        if not low < middle < high:
            break
        low, high = (middle, high) if holds(middle) else (low, middle)
    return low
