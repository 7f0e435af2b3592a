"""Fewer bytes for the figures of a page: short numbers, thinned curves, and weights of one byte each."""

from __future__ import annotations

import base64
import math
from collections.abc import Iterable
from typing import Any

import numpy as np

LEVELS = 254
"""Steps of a quantised weight; one more value says that there is none."""
NONE = 255


def short(value: float | None, digits: int = 5) -> float | int | None:
    """A number with so many significant digits; None of what is not finite.

    Args:
        value: the number.
        digits: how many.
    """
    if value is None or not math.isfinite(value):
        return None
    rounded = float(f"{value:.{digits}g}")
    return int(rounded) if rounded.is_integer() and abs(rounded) < 1e15 else rounded


def shortened(values: Iterable[float | None], digits: int = 5) -> list[float | int | None]:
    """As `short`, of each number."""
    return [short(value, digits) for value in values]


def thinned(count: int, most: int) -> list[int]:
    """Places of at most so many of `count` things, spread evenly, with the first and the last.

    Args:
        count: how many there are.
        most: how many are wanted, at least 2.
    """
    if count <= most:
        return list(range(count))
    return sorted({round(at * (count - 1) / (most - 1)) for at in range(most)})


def quantised(weights: np.ndarray[Any, Any], highest: float) -> str:
    """Weights in 254 steps from 0 to the highest, a byte each, in base64; 255 is one that is not there.

    Args:
        weights: of any shape; NaN where there is none.
        highest: of all that are to be compared, > 0.
    """
    steps = np.round(np.clip(np.nan_to_num(weights), 0.0, highest) / highest * LEVELS)
    steps[np.isnan(weights)] = NONE
    return base64.b64encode(steps.astype(np.uint8).tobytes()).decode()
