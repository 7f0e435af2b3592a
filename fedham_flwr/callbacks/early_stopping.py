"""Early stopping: the rounds end when validation has not improved for some evaluations.

v_1, v_2, ... are the values of a metric on the validation samples of all clients, of the model that the method stands
for, in the rounds in which every client was evaluated. v_i is an improvement if it is better by more than `min_delta`
than the last improvement, or the first. The run ends with the first round, `min_rounds` or later, before which and in
which `patience` values in a row were none.
"""

from __future__ import annotations

import math
from typing import final

from fedham_flwr.callbacks.protocol import RoundReport, RunStart
from fedham_flwr.core.callback_settings import EarlyStoppingSettings
from fedham_flwr.core.errors import UserError


@final
class EarlyStopping:
    """Ends a run whose validation metric does not improve any more.

    Args:
        settings: what counts as an improvement, and how long to wait for one.
    """

    Settings = EarlyStoppingSettings

    def __init__(self, settings: EarlyStoppingSettings | None = None) -> None:
        self.settings = settings or EarlyStoppingSettings()
        self._metric, self._higher = "", True
        self._best: float | None = None
        self._best_round, self._waited = 0, 0

    def on_start(self, run: RunStart) -> None:
        """Begin anew.

        Raises:
            UserError: no client has validation samples, or the metric is not measured.
        """
        metric = run.metric if self.settings.metric == "auto" else self.settings.metric
        if not run.validated:
            raise UserError(
                'callbacks="early-stopping" goes by the validation samples, and no client has any: wanted data with a '
                "validation split, or a larger validation-fraction"
            )
        if metric not in run.metrics:
            raise UserError(
                f'early-stopping.metric="{metric}" is not measured: wanted "auto" or one of {", ".join(run.metrics)}'
            )
        self._metric, self._higher = metric, run.metrics[metric]
        self._best, self._best_round, self._waited = None, 0, 0

    def on_round(self, report: RoundReport) -> str | None:
        """Compare with the best so far; a round in which not every client was evaluated does not count."""
        value = report.validation.get(self._metric)
        if value is None or report.closing:
            return None
        if self._improves(value):
            self._best, self._best_round, self._waited = value, report.round, 0
        else:
            self._waited += 1
        if self._waited < self.settings.patience or report.round < self.settings.min_rounds:
            return None
        best = "none was a number" if self._best is None else f"{self._best:.4g} in round {self._best_round}"
        evaluations = f"{self._waited} evaluation{'s' if self._waited > 1 else ''}"
        return f"no better validation {self._metric} for {evaluations} (best: {best})"

    def on_end(self, end: object) -> None:
        """Nothing is left to do."""

    def _improves(self, value: float) -> bool:
        if math.isnan(value):
            return False
        if self._best is None:
            return True
        gain = value - self._best if self._higher else self._best - value
        return gain > self.settings.min_delta
