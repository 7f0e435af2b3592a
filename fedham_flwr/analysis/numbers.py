"""Numbers as cells of a table, with as many digits as they carry: scores, differences, sizes, seconds, p-values."""

from __future__ import annotations

import math
from collections.abc import Sequence

from fedham_flwr.analysis.cells import Cell, Mark
from fedham_flwr.analysis.statistics import Interval, mean_interval
from fedham_flwr.training.metrics import Metric

EMPTY = "–"
DIGITS = 4
"""Of a score without bounds that has no interval to tell how many of them mean anything."""
MIB = 2**20


def score(interval: Interval, metric: Metric, note: str = "", marks: frozenset[Mark] = frozenset()) -> Cell:
    """A mean score: `97.21 ± 0.40` in percent if it is a fraction.

    Args:
        interval: of the mean.
        metric: what it is of.
        note: of the cell, if there is more to say than why it has no interval.
        marks: of the cell.
    """
    factor = 100 if metric.bounded else 1
    half = None if interval.half is None else interval.half * factor
    places = _places(metric, interval.mean, half)
    text = f"{interval.mean * factor:.{places}f}"
    if half is not None:
        text += f" ± {_positive(half, places)}"
    why = "; ".join(part for part in (note, interval.why) if part)
    return Cell(text, interval.mean, interval.low, interval.high, why, marks)


def difference(interval: Interval, metric: Metric, note: str = "") -> Cell:
    """A mean difference of scores: `+1.58 [+0.70, +2.46]`, in percentage points if scores are fractions.

    Args:
        interval: of the difference.
        metric: what it is of.
        note: of the cell.
    """
    factor = 100 if metric.bounded else 1
    places = _places(metric, interval.mean, None if interval.half is None else interval.half * factor)
    text = _signed(interval.mean * factor, places)
    if interval.low is not None and interval.high is not None:
        text += f" [{_signed(interval.low * factor, places)}, {_signed(interval.high * factor, places)}]"
    why = "; ".join(part for part in (note, interval.why) if part)
    return Cell(text, interval.mean, interval.low, interval.high, why)


def averaged(values: Sequence[float], metric: Metric, expected: int, marks: frozenset[Mark] = frozenset()) -> Cell:
    """The mean of one score for each seed; an empty cell of none.

    Args:
        values: of the seeds.
        metric: what they are of.
        expected: how many seeds there should be.
        marks: of the cell.
    """
    if not values:
        return Cell(EMPTY, note="not measured")
    return score(mean_interval(values), metric, short_of(len(values), expected), marks)


def short_of(count: int, expected: int) -> str:
    """That a number is of fewer seeds than it should be; empty if it is of all.

    Args:
        count: seeds that it is of.
        expected: seeds that there should be.
    """
    return f"{count} of {expected} seeds" if count < expected else ""


def amount(value: float | None, note: str = "") -> Cell:
    """A size, a time or a share with three digits; an empty cell of None.

    Args:
        value: in the unit of the heading.
        note: of the cell.
    """
    if value is None:
        return Cell(EMPTY, note=note)
    return Cell(amount_text(value), value, note=note)


def amount_text(value: float) -> str:
    """A number with three digits, or all of those before the point."""
    if value == 0:
        return "0"
    places = max(0, 2 - math.floor(math.log10(abs(value))))
    return f"{value:,.{places}f}"


def count(value: int) -> Cell:
    """A whole number."""
    return Cell(f"{value:,}", value)


def probability(p: float | None) -> Cell:
    """A p-value with two digits, nothing below 0.001; an empty cell of None."""
    if p is None:
        return Cell(EMPTY, note="no test")
    return Cell("< 0.001" if p < 0.001 else f"{p:.3f}" if p < 0.1 else f"{p:.2f}", p)


def _places(metric: Metric, mean: float, half: float | None) -> int:
    """Digits after the point: two of percent; else so many that the half width has two, or the mean has DIGITS."""
    if metric.bounded:
        return 2
    size, digits = (half, 2) if half else (abs(mean), DIGITS)
    return max(0, digits - 1 - math.floor(math.log10(size))) if size else 2


def _positive(half: float, places: int) -> str:
    """A half width, which is not written as 0."""
    least = 10.0**-places
    return f"{half:.{places}f}" if half >= least / 2 else f"< {least:.{places}f}"


def _signed(value: float, places: int) -> str:
    """With its sign; a number that is rounded to 0 has none."""
    text = f"{value:+.{places}f}"
    return text if float(text) else text[1:]
