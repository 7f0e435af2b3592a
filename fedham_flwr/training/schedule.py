"""The learning rate of each round: constant, a cosine or steps, after a linear warm-up."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Schedule:
    """How the learning rate changes from round to round.

    Attributes:
        kind: constant, cosine or step.
        rounds: how many there are, at least 1.
        warmup: the first rounds, in which the rate rises to its full value; fewer than `rounds`.
        every: step: rounds from one decay to the next, at least 1.
        factor: step: what each decay multiplies the rate with.
        least: cosine: where the rate goes, at most the full rate.
    """

    kind: Literal["constant", "cosine", "step"] = "constant"
    rounds: int = 1
    warmup: int = 0
    every: int = 10
    factor: float = 0.1
    least: float = 0.0


def rate(schedule: Schedule, full: float, round_number: int) -> float:
    """The learning rate of a round.

    Of w warm-up rounds, round t has t / (w + 1) of the full rate, and round w + 1 is the first that has all of it. The
    cosine would be at its end in the round after the last (as torch's `CosineAnnealingLR` over the rounds would be),
    so that the last round still learns where the rate goes to 0.

    Args:
        schedule: how it changes.
        full: the rate without a schedule.
        round_number: from 1; what comes after the last round has the last round's rate.
    """
    number = min(max(round_number, 1), schedule.rounds)
    if number <= schedule.warmup:
        return full * number / (schedule.warmup + 1)
    done = number - 1 - schedule.warmup
    if schedule.kind == "cosine":
        share = done / (schedule.rounds - schedule.warmup)
        return schedule.least + (full - schedule.least) * (1 + math.cos(math.pi * share)) / 2
    if schedule.kind == "step":
        return full * schedule.factor ** (done // schedule.every)
    return full
