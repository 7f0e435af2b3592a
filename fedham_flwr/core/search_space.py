"""Which values of a setting a search may try: a range or a choice, and the value it starts from."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

Value = bool | int | float | str


@dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`, both included.

    Attributes:
        low: the smallest.
        high: the largest.
        start: the value that a search tries first: the paper's, or the default where the paper prints none.
        log: steps multiply instead of adding; `low` must be above 0.
        whole: whole numbers only.
        source: of `start`: where the paper prints it; empty where it is a default of this project.

    Raises:
        ValueError: `low <= start <= high` does not hold, or a logarithmic range begins at 0 or below.
    """

    low: float
    high: float
    start: float
    log: bool = False
    whole: bool = False
    source: str = ""

    def __post_init__(self) -> None:
        if self.low > self.high:
            raise ValueError(f"a range has its lowest number first, and goes not from {self.low} to {self.high}")
        if not all(map(math.isfinite, (self.low, self.high, self.start))) or not self.low <= self.start <= self.high:
            raise ValueError(f"a range from {self.low} to {self.high} does not hold its start {self.start}")
        if self.low == self.high:
            raise ValueError(f"a range from {self.low} to {self.high} leaves nothing to search")
        if self.log and self.low <= 0:
            raise ValueError(f"a logarithmic range begins above 0, and not at {self.low}")
        if self.whole and any(number != int(number) for number in (self.low, self.high, self.start)):
            raise ValueError(
                f"a range of whole numbers has whole ends and start, not {self.low}, {self.high}, {self.start}"
            )


@dataclass(frozen=True)
class Choice:
    """One of some values.

    Attributes:
        values: at least two, all different.
        start: the one that a search tries first, as in `Range`.
        source: as in `Range`.

    Raises:
        ValueError: there are fewer than two, two are equal, or the start is none of them.
    """

    values: tuple[Value, ...]
    start: Value
    source: str = ""

    def __post_init__(self) -> None:
        if len(self.values) < 2 or len(set(map(repr, self.values))) != len(self.values):
            raise ValueError(f"wanted at least two different values, not {self.values}")
        if repr(self.start) not in map(repr, self.values):
            raise ValueError(f"the start {self.start!r} is none of {self.values}")


VALIDATED = "ours, by validation in studies"
"""Source of a default that searches of `benchmarks/studies` chose, or could not tell from what they chose."""

Dimension = Range | Choice
Space = Mapping[str, Dimension]
"""Setting, as it is written (`fedprox.mu`, in the section of its method) -> the values that a search may try."""
