"""Differential privacy of what clients send: the noise, the account, and what fails closed."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedham_flwr import registry
from fedham_flwr.core import privacy
from fedham_flwr.core.errors import UserError
from fedham_flwr.core.privacy import PrivacySettings
from fedham_flwr.core.records import RoundRecord
from fedham_flwr.settings import Value, methods, parse

Federate = Callable[..., Any]
ON: dict[str, Value] = {"dp.epsilon": 2.0, "dp.clipping-norm": 0.5}
ONE = PrivacySettings(1.0, 1e-5, 1.0)

AVERAGING = [name for name in registry.METHODS if registry.method(name).averages]


# ---- how much noise ----------------------------------------------------------------------------------------------


# sigma / sensitivity: for 1, 1e-5 a number often printed; all found by a root finder on scipy's normal distribution.
@pytest.mark.parametrize(
    ("epsilon", "delta", "sigma"),
    [(1.0, 1e-5, 3.7306316348159), (0.1, 1e-6, 36.304690426196), (8.0, 1e-5, 0.60022907219895)],
)
def test_the_noise_is_the_smallest_that_gives_epsilon_and_delta(epsilon: float, delta: float, sigma: float) -> None:
    assert 1 / privacy.strength(epsilon, delta) == pytest.approx(sigma, rel=1e-11)


@given(st.floats(1e-3, 1e5), st.floats(1e-12, 0.9))
def test_the_condition_holds_with_equality_at_that_noise(epsilon: float, delta: float) -> None:
    mu = privacy.strength(epsilon, delta)
    assert privacy.leak(epsilon, mu) <= delta
    assert privacy.leak(epsilon, mu * (1 + 1e-6)) > delta
    assert privacy.exact_epsilon(mu, delta) == pytest.approx(epsilon, rel=1e-6)
    # By zCDP it is never less.
    assert privacy.zcdp_epsilon(mu, delta) >= privacy.exact_epsilon(mu, delta)


def test_the_condition_is_the_integral_over_where_the_two_densities_differ() -> None:
    epsilon, mu = 0.7, 0.9
    x = np.linspace(-30, 30, 2_000_001)
    near, far = (np.exp(-((x - at) ** 2) / 2) / math.sqrt(2 * math.pi) for at in (mu, 0.0))
    area = np.maximum(near - math.exp(epsilon) * far, 0).sum() * (x[1] - x[0])
    assert privacy.leak(epsilon, mu) == pytest.approx(area, rel=1e-9)


@given(st.floats(1e-3, 1.0), st.floats(1e-12, 0.5))
def test_up_to_epsilon_1_the_classical_noise_is_larger(epsilon: float, delta: float) -> None:
    assert math.sqrt(2 * math.log(1.25 / delta)) / epsilon >= 1 / privacy.strength(epsilon, delta)


def test_for_large_epsilons_the_classical_noise_would_promise_too_much() -> None:
    classical = math.sqrt(2 * math.log(1.25 / 1e-5)) / 1e4
    assert privacy.leak(1e4, 1 / classical) > 0.99
    assert 1 / privacy.strength(1e4, 1e-5) > 10 * classical


def test_the_sensitivity_is_twice_the_clipping_norm_unless_it_is_given() -> None:
    unit = 1 / privacy.strength(2.0, 1e-5)
    assert privacy.noise(PrivacySettings(2.0, 1e-5, 3.0)) == pytest.approx(6.0 * unit)
    assert privacy.noise(PrivacySettings(2.0, 1e-5, 3.0, 3.0)) == pytest.approx(3.0 * unit)


# ---- the account -------------------------------------------------------------------------------------------------


# (k, epsilon) at delta 1e-5 of releases with epsilon 1, by the privacy-loss accountant of Google's dp-accounting 0.6.0.
@pytest.mark.parametrize(("count", "epsilon"), [(1, 1.0), (10, 3.6185915766), (100, 14.429270000)])
def test_many_releases_cost_what_a_privacy_loss_accountant_says(count: int, epsilon: float) -> None:
    assert privacy.spent(ONE, count)["epsilon"] == pytest.approx(epsilon, rel=1e-8)


def test_the_two_other_compositions_by_hand() -> None:
    # sigma / sensitivity is 3.73063, so rho is 4 / (2 * 3.73063^2) = 0.143705 for four releases.
    total = privacy.spent(ONE, 4)
    assert total["epsilon-zcdp"] == pytest.approx(0.143705 + 2 * math.sqrt(0.143705 * math.log(1e5)), rel=1e-5)
    assert (total["epsilon-basic"], total["delta-basic"]) == (4.0, pytest.approx(4e-5))
    assert privacy.spent(ONE, 0) == {"epsilon": 0.0, "epsilon-zcdp": 0.0, "epsilon-basic": 0.0, "delta-basic": 0.0}
    assert privacy.spent(ONE, 10**5)["epsilon-basic"] is None  # delta would be 1


def record(number: int, kind: str, *cohort: str) -> RoundRecord:
    return RoundRecord(number, kind, cohort, 0, (), {}, 0, 0)


def test_a_release_is_counted_for_each_client_that_was_asked_to_train_and_for_each_interruption() -> None:
    exchanges = [
        record(1, "train", "a", "b"),
        record(1, "evaluate", "c"),
        record(2, "train", "b"),
        record(2, "query", "a"),
    ]
    assert privacy.releases(exchanges) == {"a": 1, "b": 2}
    assert privacy.releases(exchanges, ("a", "b", "c"), interruptions=2) == {"a": 3, "b": 4, "c": 2}


def test_what_is_shown_and_stored_at_the_end_of_a_run() -> None:
    counts = {"a": 1, "b": 20}
    found = privacy.budget(ONE, counts)
    assert {key: found[key] for key in ("epsilon", "delta", "clipping-norm", "sensitivity")} == {
        "epsilon": 1.0, "delta": 1e-5, "clipping-norm": 1.0, "sensitivity": 2.0,
    }  # fmt: skip
    assert found["sigma"] == pytest.approx(7.4612632696)
    clients: Any = found["clients"]
    assert clients["a"]["releases"] == 1
    assert clients["b"] == {"releases": 20, **privacy.spent(ONE, 20)}
    assert privacy.sentence(ONE, counts) == (
        "privacy: at most 20 releases of a client: epsilon 5.407 at delta 1e-05 (by zCDP 6.471; by basic composition "
        "epsilon 20 at delta 0.0002)"
    )
    assert privacy.budget(PrivacySettings(), counts) == {}
    assert privacy.sentence(PrivacySettings(), counts) == ""


# ---- the settings ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("strategy", [method for method in methods() if method not in AVERAGING])
def test_methods_that_do_not_average_are_refused(strategy: str) -> None:
    message = (
        rf"dp.epsilon=2 is for methods that average \({', '.join(AVERAGING)}\), and "
        rf'strategy="{strategy}" does not: wanted one of these, or dp.epsilon=0.0'
    )
    with pytest.raises(UserError, match=message):
        parse({"strategy": strategy, **ON})


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"dp.epsilon": 1.0}, "dp.epsilon=1 needs dp.clipping-norm, the length that updates are clipped to, above 0"),
        ({**ON, "dp.sensitivity": 0.4}, r"dp.sensitivity=0.4 promises too much: .* up to dp.clipping-norm=0.5: wanted"),
        ({**ON, "dp.delta": 1.0}, "dp.delta=1.0: wanted less than 1"),
        ({**ON, "dp.delta": 0.0}, "dp.delta=0.0: wanted greater than 0"),
        ({**ON, "dp.epsilon": 2e6}, "dp.epsilon=2000000.0: wanted less than or equal to 1000000"),
        ({"dp.epsilon": -1.0}, "dp.epsilon=-1.0: wanted greater than or equal to 0"),
    ],
)
def test_what_does_not_fit_together_is_refused(given: dict[str, Value], message: str) -> None:
    with pytest.raises(UserError, match=message):
        parse({"strategy": "fedavg", **given})


@pytest.mark.parametrize("strategy", AVERAGING)
def test_methods_that_average_are_admitted(strategy: str) -> None:
    assert parse({"strategy": strategy, **ON}).dp.epsilon == 2.0
