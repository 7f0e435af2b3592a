"""What a method reaches with a budget of bytes or seconds, read off a curve of scores over what was spent.

A curve is a step: between two evaluations the score is the earlier one's. A point is (spent, score), in the order of
the rounds; `spent` never falls.
"""

from __future__ import annotations

from collections.abc import Sequence

Curve = Sequence[tuple[float, float]]


def reached(curve: Curve, budget: float) -> float | None:
    """The score of the last evaluation with at most this spent; None if there is none.

    The last and not the best one: choosing the best on the way would favour a curve that jumps.

    Args:
        curve: of a run.
        budget: in the unit of the curve.
    """
    values = [value for spent, value in curve if spent <= budget]
    return values[-1] if values else None


def needed(curve: Curve, target: float, higher: bool = True) -> float | None:
    """What was spent at the first evaluation that is at least as good as a target; None if none is.

    Args:
        curve: of a run.
        target: a score.
        higher: whether higher is better.
    """
    sign = 1 if higher else -1
    return next((spent for spent, value in curve if sign * value >= sign * target), None)


def area(curve: Curve, start: float, stop: float) -> float | None:
    """The mean of the step curve between two amounts spent; None if its first point comes after `start`.

    Args:
        curve: of a run.
        start: in the unit of the curve.
        stop: above `start`.

    Raises:
        ValueError: there is nothing between the two.
    """
    if stop <= start:
        raise ValueError(f"from {start} to {stop} there is nothing to take the mean of")
    if (value := reached(curve, start)) is None:
        return None
    total, at = 0.0, start
    for spent, score in curve:
        if start < spent < stop:
            total, at, value = total + value * (spent - at), spent, score
    return (total + value * (stop - at)) / (stop - start)
