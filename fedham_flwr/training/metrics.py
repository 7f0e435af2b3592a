"""Metrics: their names, directions and ranges.

| metric | of | range | better |
| --- | --- | --- | --- |
| accuracy, balanced-accuracy | class, next-token | 0 to 1 | higher |
| f1, auroc, average-precision | class, next-token, multi-label | 0 to 1 | higher |
| calibration-error | class, next-token | 0 to 1 | lower |
| perplexity | next-token | from 1 | lower |
| mae, rmse | value | from 0 | lower |
| r2 | value | up to 1 | higher |
| loss | every target, always measured | from 0 | lower |

Means over classes are over those that a client's targets have; where nothing is defined there is no score. Others are
measured by a user's own object. What the server needs to know, direction and range, is here without torchmetrics, which
is imported only when `scores` or a user's metric needs it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from fedham_flwr.data.batches import Target

CLASSES: tuple[Target, ...] = ("class", "next-token")
"""Targets of which one class of K is right."""
_LABELS: tuple[Target, ...] = (*CLASSES, "multi-label")
_ALL: tuple[Target, ...] = (*_LABELS, "value")
Function = Callable[[Tensor, Tensor], Any]
"""Gives a score, of outputs and targets."""


@dataclass(frozen=True)
class Metric:
    """What is known of a metric.

    Attributes:
        name: in the results.
        higher: whether higher is better.
        least: no score is lower.
        most: no score is higher.
        targets: for which it is defined.
        own: a user's, which measures outputs and targets of all samples; None for a built-in one.
    """

    name: str
    higher: bool = True
    least: float = -math.inf
    most: float = math.inf
    targets: tuple[Target, ...] = _ALL
    own: Function | None = field(default=None, compare=False)

    @property
    def bounded(self) -> bool:
        """Whether it is a fraction, from 0 to 1."""
        return (self.least, self.most) == (0.0, 1.0)


METRICS: Mapping[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric("accuracy", True, 0.0, 1.0, CLASSES),
        Metric("balanced-accuracy", True, 0.0, 1.0, CLASSES),
        Metric("f1", True, 0.0, 1.0, _LABELS),
        Metric("auroc", True, 0.0, 1.0, _LABELS),
        Metric("average-precision", True, 0.0, 1.0, _LABELS),
        Metric("calibration-error", False, 0.0, 1.0, CLASSES),
        Metric("perplexity", False, 1.0, math.inf, ("next-token",)),
        Metric("mae", False, 0.0, math.inf, ("value",)),
        Metric("rmse", False, 0.0, math.inf, ("value",)),
        Metric("r2", True, -math.inf, 1.0, ("value",)),
        Metric("loss", False, 0.0),
    )
}
"""The built-in metrics by name."""
ACCURACY = METRICS["accuracy"]


def known(name: str, measured: Sequence[Metric] = ()) -> Metric:
    """A metric by its name in the results; one that nobody knows has no range, and higher is better.

    Args:
        name: of a row.
        measured: a run's metrics, with those of the user's own.
    """
    return next((metric for metric in measured if metric.name == name), None) or METRICS.get(name) or Metric(name)
