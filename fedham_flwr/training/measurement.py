"""How an evaluation measures its metrics, batch by batch.

Letters: n predictions, K classes, k labels or values.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from fedham_flwr.data.batches import target_of
from fedham_flwr.training import scores
from fedham_flwr.training.metric_choice import chosen
from fedham_flwr.training.metrics import CLASSES, Metric
from fedham_flwr.training.targets import loss_terms, predictions, task_loss

MOST_NATS = 700.0
"""A mean loss beyond this has no perplexity that a float could hold."""
STREAMED = ("accuracy", "loss", "perplexity")
"""Metrics that are summed up batch by batch, so that no output is kept."""


class Scores(NamedTuple):
    """Result of one evaluation.

    A prediction is one image, one position of a text, or one row of a table.

    Attributes:
        values: metric -> score, the loss among them (in nats, or squared units of the values), and none that is not
            defined.
        n: number of predictions.
    """

    values: Mapping[str, float]
    n: int

    @property
    def loss(self) -> float:
        """The mean loss."""
        return self.values["loss"]


class Measurement:
    """Takes outputs and targets batch by batch, and gives the scores.

    Args:
        metrics: what to measure; by default what `auto` stands for.
        device: where outputs are.
    """

    def __init__(self, metrics: Sequence[Metric] | None, device: torch.device) -> None:
        self._metrics = metrics
        self._hits = torch.zeros((), dtype=torch.int64, device=device)
        self._loss = torch.zeros((), dtype=torch.float64, device=device)
        self._terms = self._n = 0
        self._kept: list[tuple[Tensor, Tensor]] = []

    def add(self, outputs: Tensor, targets: Tensor) -> None:
        """Take a batch.

        Args:
            outputs: of the network, or of a method's predictor; as for `targets.task_loss`.
            targets: of the data.
        """
        target = target_of(targets)
        if self._metrics is None:
            self._metrics = chosen("auto", target, 0)
        if target in CLASSES:
            self._hits += (outputs.argmax(-1) == targets).sum()
        self._loss += task_loss(outputs.float(), targets, "sum")
        self._terms += loss_terms(targets)
        self._n += predictions(targets)
        if any(metric.name not in STREAMED for metric in self._metrics):
            flat = target in CLASSES
            outputs = outputs.float()
            self._kept.append((outputs.flatten(0, -2), targets.flatten()) if flat else (outputs, targets))

    def scores(self) -> Scores:
        """What was measured; of at least one batch."""
        assert self._metrics is not None
        loss = self._loss.item() / self._terms
        values: dict[str, float | None] = {}
        outputs, targets = map(torch.cat, zip(*self._kept, strict=True)) if self._kept else (None, None)
        for metric in self._metrics:
            if metric.name == "accuracy":
                values["accuracy"] = self._hits.item() / self._n
            elif metric.name == "perplexity":
                values |= {"loss": loss, "perplexity": math.exp(min(loss, MOST_NATS))}
            elif outputs is not None and targets is not None:
                values[metric.name] = (metric.own or scores.FUNCTIONS[metric.name])(outputs, targets)
        values.setdefault("loss", loss)
        # No score is not a number: a user's metric says by NaN that it is not defined. A loss shows what diverged.
        defined = {
            n: value for n, value in values.items() if value is not None and (n == "loss" or not math.isnan(value))
        }
        return Scores(defined, self._n)
