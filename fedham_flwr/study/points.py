"""Points of a search space: the unit cube made values of settings, the points of a grid, and points spread evenly."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch.quasirandom import SobolEngine

from fedham_flwr.core.search_space import Choice, Dimension, Range, Space, Value

Values = Mapping[str, Value]
"""Setting -> a value of it, in the order of the space."""
STEPS = 10_000
"""A range of numbers is searched to about so many different values, which are then short enough to be written down."""


def start_of(space: Space) -> Values:
    """The point that a search tries first."""
    return {key: _number(one, one.start) if isinstance(one, Range) else one.start for key, one in space.items()}


def point(space: Space, place: Sequence[float]) -> Values:
    """The point of a place in the unit cube.

    Args:
        space: of d dimensions.
        place: d numbers in [0, 1).
    """
    return {key: value_at(one, at) for (key, one), at in zip(space.items(), place, strict=True)}


def value_at(dimension: Dimension, place: float) -> Value:
    """The value of a dimension at a place in [0, 1): equal lengths of it are equal shares of the range or choices."""
    if isinstance(dimension, Choice):
        return dimension.values[int(place * len(dimension.values))]
    low, high = _ends(dimension)
    return settled(dimension, low * (high / low) ** place if dimension.log else low + place * (high - low))


def settled(dimension: Range, number: float) -> int | float:
    """A number of a range made one that is tried: whole, or of few digits, and not outside."""
    number = number if dimension.whole else _short(number, dimension)
    return _number(dimension, min(max(number, dimension.low), dimension.high))


def size(space: Space) -> float:
    """How many different points there are; infinite if a dimension is a range of numbers that need not be whole."""
    return math.prod(map(_size, space.values()))


def spread(space: Space) -> Iterator[Values]:
    """Points of a space that are spread evenly, however many are taken: Sobol's sequence, from the start on.

    The values of a dimension depend neither on how many follow it nor on these: spaces that begin with the same
    dimensions have the same values of them, point by point. Of one dimension the first 2^n points, the start among
    them, lie 2^-n of it apart, beyond its end from its beginning.

    Args:
        space: what is searched; its first point, the start, is left out.
    """
    if not space:
        return
    first = [_start_place(one) for one in space.values()]
    places = SobolEngine(len(space)).fast_forward(1)  # type: ignore[no-untyped-call]
    while True:
        (place,) = places.draw(dtype=torch.float64).tolist()
        yield point(space, [(start + at) % 1.0 for start, at in zip(first, place, strict=True)])


def grid(space: Space, most: int) -> list[Values]:
    """Every combination of some levels of each dimension, the start first.

    Levels are added one by one, where there are fewest, of as many the earlier dimension's, as long as there are at
    most `most` points. With m levels a range is cut into m equal parts, whose middles they are but for that part with
    the start, which is the start.

    Args:
        space: what is searched.
        most: the most points.
    """
    counts = dict.fromkeys(space, 1)
    while growing := [key for key in counts if counts[key] < _size(space[key]) and _grown(counts, key) <= most]:
        counts[min(growing, key=counts.__getitem__)] += 1
    levels = [_levels(space[key], count) for key, count in counts.items()]
    return [dict(zip(space, values, strict=True)) for values in itertools.product(*levels)]


def every(space: Space) -> Iterator[Values]:
    """All points of a space that has finitely many."""
    for values in itertools.product(*map(_values, space.values())):
        yield dict(zip(space, values, strict=True))


def identity(values: Values) -> str:
    """Equal for two points if they are the same; 1, 1.0 and true are three values."""
    return repr(list(values.values()))


def _grown(counts: Mapping[str, int], key: str) -> int:
    """The points of a grid with one level more."""
    return math.prod(counts.values()) // counts[key] * (counts[key] + 1)


def _levels(dimension: Dimension, count: int) -> list[Value]:
    if isinstance(dimension, Choice):
        others = [value for value in dimension.values if repr(value) != repr(dimension.start)]
        return [dimension.start, *others][:count]
    part = min(int(_place(dimension, dimension.start) * count), count - 1)
    middles = [value_at(dimension, (at + 0.5) / count) for at in range(count) if at != part]
    return list(dict.fromkeys([_number(dimension, dimension.start), *middles]))


def _place(dimension: Range, number: float) -> float:
    """The place in [0, 1] of a number."""
    low, high = _ends(dimension)
    return math.log(number / low) / math.log(high / low) if dimension.log else (number - low) / (high - low)


def _start_place(dimension: Dimension) -> float:
    """The place in [0, 1] of the start.

    Of choices and whole numbers it is a third of their share from its lower end, so that no place 2^-n further is the
    border of two, where rounding would tell.
    """
    if isinstance(dimension, Choice):
        values = list(map(repr, dimension.values))
        return (values.index(repr(dimension.start)) + 1 / 3) / len(values)
    return _place(dimension, dimension.start - 1 / 6 if dimension.whole else dimension.start)


def _ends(dimension: Range) -> tuple[float, float]:
    """The ends of a range; of whole numbers half a step further, so that the outermost have as much room as others."""
    more = 0.5 if dimension.whole else 0.0
    return dimension.low - more, dimension.high + more


def _number(dimension: Range, number: float) -> int | float:
    return round(number) if dimension.whole else float(number)


def _short(number: float, dimension: Range) -> float:
    """A number of few digits."""
    if dimension.log:
        finer = max(0, -math.floor(math.log10(math.log(dimension.high / dimension.low))))
        return float(f"{number:.{4 + finer}g}")
    return round(number, math.ceil(math.log10(STEPS / (dimension.high - dimension.low))))


def _size(dimension: Dimension) -> float:
    if isinstance(dimension, Choice):
        return len(dimension.values)
    return dimension.high - dimension.low + 1 if dimension.whole else math.inf


def _values(dimension: Dimension) -> Sequence[Value]:
    if isinstance(dimension, Choice):
        return dimension.values
    return range(int(dimension.low), int(dimension.high) + 1)
