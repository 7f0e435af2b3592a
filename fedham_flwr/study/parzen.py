"""Optuna's tree-structured Parzen estimator, asked for values given the trials before."""

from __future__ import annotations

import contextlib
import math
import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING

from fedham_flwr.core.search_space import Choice, Dimension, Space, Value
from fedham_flwr.core.seeding import derive
from fedham_flwr.study.points import Values, settled
from fedham_flwr.study.told import Asked, Told

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.study import Study
    from optuna.trial import FrozenTrial


def draws(asked: Asked) -> Iterator[Values]:
    """Values that the estimator proposes, one after another; it is made anew from what was told and the seed.

    Args:
        asked: of at least one dimension.
    """
    import optuna

    kinds = {key: _distribution(one) for key, one in asked.space.items()}
    with _quiet():
        sampler = optuna.samplers.TPESampler(
            seed=derive(asked.seed, "tpe", asked.number) % 2**32,
            n_startup_trials=1,
            multivariate=True,
            constant_liar=True,
        )
        study = optuna.create_study(direction="maximize" if asked.higher else "minimize", sampler=sampler)
        for told in asked.told:
            study.add_trial(_finished(told, asked.space, kinds))
        for values in asked.batch:
            running = optuna.trial.TrialState.RUNNING
            params = _params(asked.space, values)
            study.add_trial(optuna.trial.create_trial(state=running, params=params, distributions=kinds))
    while True:
        yield _next(study, asked.space, kinds)


def _next(study: Study, space: Space, kinds: dict[str, BaseDistribution]) -> Values:
    with _quiet():
        params = study.ask(kinds).params
    return {key: _value(one, params[key]) for key, one in space.items()}


def _finished(told: Told, space: Space, kinds: dict[str, BaseDistribution]) -> FrozenTrial:
    """A trial as Optuna has it; one that failed is to the estimator one that was pruned at once, the worst there is."""
    from optuna.trial import TrialState, create_trial

    steps = {} if told.state == "failed" else {at: value for at, value in told.steps if math.isfinite(value)}
    return create_trial(
        state=TrialState.COMPLETE if told.state == "complete" else TrialState.PRUNED,
        value=told.value if told.state == "complete" else None,
        params=_params(space, told.values),
        distributions=kinds,
        intermediate_values=steps,
    )


def _distribution(dimension: Dimension) -> BaseDistribution:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if isinstance(dimension, Choice):
        return CategoricalDistribution(range(len(dimension.values)))
    if dimension.whole:
        return IntDistribution(int(dimension.low), int(dimension.high), log=dimension.log)
    return FloatDistribution(dimension.low, dimension.high, log=dimension.log)


def _params(space: Space, values: Values) -> dict[str, int | float]:
    """Values as Optuna has them: of choices the place."""
    return {key: _param(one, values[key]) for key, one in space.items()}


def _param(dimension: Dimension, value: Value) -> int | float:
    if isinstance(dimension, Choice):
        return list(map(repr, dimension.values)).index(repr(value))
    assert not isinstance(value, str)
    return value


def _value(dimension: Dimension, param: int | float) -> Value:
    return dimension.values[int(param)] if isinstance(dimension, Choice) else settled(dimension, param)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without what Optuna writes of each trial, and without its warnings that these options may change."""
    import optuna

    said = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            yield
    finally:
        optuna.logging.set_verbosity(said)
