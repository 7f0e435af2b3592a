"""Which values a trial of a search is proposed, given what became of those before it."""

from __future__ import annotations

import importlib.util
import itertools
import math
from collections.abc import Callable, Iterable, Iterator
from typing import Literal

from fedham_flwr.core.errors import UserError
from fedham_flwr.core.seeding import stream
from fedham_flwr.study import parzen
from fedham_flwr.study.points import Values, every, grid, identity, point, size, spread, start_of
from fedham_flwr.study.told import Asked

Sampler = Literal["tpe", "sobol", "random", "grid"]
DRAWS = 16
"""So many proposals of a sampler are looked at for values that have not been tried."""
SPREAD_FIRST = 4
"""So many trials have points that are spread evenly, the start among them, before a model of the results proposes any:
the same number for all methods, so that a method with few settings does not look at other learning rates."""


def sampler_used(asked: str) -> Sampler:
    """The sampler that a study uses: what was asked for; of auto, tpe if Optuna is installed and sobol if it is not.

    Args:
        asked: auto, tpe, sobol, random or grid.

    Raises:
        UserError: tpe without Optuna, or another name.
    """
    there = importlib.util.find_spec("optuna") is not None
    if asked == "auto":
        return "tpe" if there else "sobol"
    if asked == "tpe" and not there:
        raise UserError('sampler="tpe" needs Optuna: pip install \'fedham-flwr[tune]\', or take "sobol" or "random"')
    for known in SAMPLERS:
        if asked == known:
            return known
    raise UserError(f'sampler="{asked}" is none: wanted auto, {", ".join(SAMPLERS)}')


def propose(asked: Asked, sampler: Sampler) -> Values | None:
    """Values for the next trial that no other trial has had: the start's for the first one; None if there are none.

    Args:
        asked: all that the values depend on.
        sampler: which proposes; what it proposes twice is replaced by a point of those spread evenly.
    """
    taken = {identity(values) for values in (*(one.values for one in asked.told), *asked.batch)}
    first = [start_of(asked.space)] if asked.number == 0 else []
    for values in itertools.chain(first, SAMPLERS[sampler](asked), _others(asked)):
        if identity(values) not in taken:
            return values
    return None


def _others(asked: Asked) -> Iterator[Values]:
    """Points spread evenly, and then all points of a space that has finitely many."""
    yield from itertools.islice(spread(asked.space), DRAWS * (asked.number + 1))
    if math.isfinite(size(asked.space)):
        yield from every(asked.space)


def _spread(asked: Asked) -> Iterator[Values]:
    before = max(asked.number - 1, 0)
    return itertools.islice(spread(asked.space), before, before + DRAWS)


def _by_grid(asked: Asked) -> Iterable[Values]:
    return grid(asked.space, asked.trials)


def _at_random(asked: Asked) -> Iterator[Values]:
    draws = stream(asked.seed, "search", asked.number)
    return (point(asked.space, draws.random(len(asked.space)).tolist()) for _ in range(DRAWS))


def _by_model(asked: Asked) -> Iterator[Values]:
    """The first points are spread evenly; the others are Optuna's."""
    if asked.number < SPREAD_FIRST:
        yield from _spread(asked)
    elif asked.space:
        yield from itertools.islice(parzen.draws(asked), DRAWS)


SAMPLERS: dict[Sampler, Callable[[Asked], Iterable[Values]]] = {
    "tpe": _by_model, "sobol": _spread, "random": _at_random, "grid": _by_grid,
}  # fmt: skip
"""Sampler -> what it proposes for a trial, in the order in which it would have them."""
