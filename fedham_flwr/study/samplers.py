"""Which values a trial of a search is proposed, given what became of those before it."""

from __future__ import annotations

import importlib.util
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Literal

from fedham_flwr.core.errors import UserError
from fedham_flwr.core.seeding import stream
from fedham_flwr.study import parzen
from fedham_flwr.study.points import Values, every, grid, identity, point, size, spread, start_of
from fedham_flwr.study.told import Asked

Sampler = Literal["tpe", "random", "grid"]
DRAWS = 16
"""So many proposals of a sampler are looked at for values that have not been tried."""
MOST_SPREAD = 10
"""The most trials of points spread evenly before a model of the results proposes any."""


def sampler_used(asked: str) -> Sampler:
    """The sampler that a study uses: what was asked for; of auto, tpe if Optuna is installed and grid if it is not.

    Args:
        asked: auto, tpe, random or grid.

    Raises:
        UserError: tpe without Optuna, or another name.
    """
    there = importlib.util.find_spec("optuna") is not None
    if asked == "auto":
        return "tpe" if there else "grid"
    if asked == "tpe" and not there:
        raise UserError('sampler="tpe" needs Optuna: pip install \'fedham-flwr[tune]\', or take "random" or "grid"')
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
    shift = [0.5] * len(asked.space)
    yield from itertools.islice(_spread(asked, shift), DRAWS * (asked.number + 1))
    if math.isfinite(size(asked.space)):
        yield from every(asked.space)


def _spread(asked: Asked, shift: Sequence[float]) -> Iterator[Values]:
    return (point(asked.space, place) for place in spread(len(asked.space), shift))


def _by_grid(asked: Asked) -> Iterable[Values]:
    return grid(asked.space, asked.trials)


def _at_random(asked: Asked) -> Iterator[Values]:
    draws = stream(asked.seed, "search", asked.number)
    return (point(asked.space, draws.random(len(asked.space)).tolist()) for _ in range(DRAWS))


def _by_model(asked: Asked) -> Iterator[Values]:
    """The first points are spread evenly from a place that is drawn; the others are Optuna's."""
    if asked.number < min(2 + len(asked.space), MOST_SPREAD):
        shift = stream(asked.seed, "search shift").random(len(asked.space)).tolist()
        yield from itertools.islice(_spread(asked, shift), asked.number - 1, asked.number - 1 + DRAWS)
    elif asked.space:
        yield from itertools.islice(parzen.draws(asked), DRAWS)


SAMPLERS: dict[Sampler, Callable[[Asked], Iterable[Values]]] = {
    "tpe": _by_model, "random": _at_random, "grid": _by_grid,
}  # fmt: skip
"""Sampler -> what it proposes for a trial, in the order in which it would have them."""
