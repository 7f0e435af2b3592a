"""MLflow: a run in an experiment, with all settings as parameters and the numbers of each round as metrics."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Any, final

from fedham_flwr.callbacks.protocol import RunStart
from fedham_flwr.callbacks.tracker import name_of, recall, remember
from fedham_flwr.core.callback_settings import TrackingSettings

MOST_PARAMETERS, MOST_METRICS = 100, 1000
"""In one message to a server."""


@final
class Log:
    """Tells MLflow through a client of its own, beside whatever run the program may have there.

    Args:
        settings: the server, the experiment and the name of the run.
    """

    def __init__(self, settings: TrackingSettings) -> None:
        self._settings = settings
        self._client: Any = None
        self._id, self._last = "", 0

    def open(self, run: RunStart) -> bool:
        """As `tracker.Log.open`."""
        # What MLflow would send its makers of its use nobody has asked for.
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        import mlflow

        self._client, self._last = mlflow.MlflowClient(tracking_uri=self._settings.mlflow_uri or None), run.done
        self._id = recall(run.directory, "mlflow")
        if self._id:
            self._client.update_run(self._id, status="RUNNING")
            return True
        known = self._client.get_experiment_by_name(self._settings.project)
        experiment = known.experiment_id if known else self._client.create_experiment(self._settings.project)
        made = self._client.create_run(experiment, run_name=name_of(run, self._settings))
        self._id = made.info.run_id
        remember(run.directory, "mlflow", self._id)
        parameters = [mlflow.entities.Param(key, str(value)) for key, value in run.settings.items()]
        for some in _parts(parameters, MOST_PARAMETERS):
            self._client.log_batch(self._id, params=some)
        return False

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """As `tracker.Log.write`."""
        import mlflow

        self._last, now = step, int(time.time() * 1000)  # milliseconds since 1970
        metrics = [mlflow.entities.Metric(name, float(value), now, step) for name, value in values.items()]
        for some in _parts(metrics, MOST_METRICS):
            self._client.log_batch(self._id, metrics=some)

    def close(self, error: str | None, values: Mapping[str, float]) -> None:
        """As `tracker.Log.close`."""
        self.write(self._last, values)
        interrupted = error is not None and error.startswith("KeyboardInterrupt")
        status = "KILLED" if interrupted else "FAILED" if error is not None else "FINISHED"
        self._client.set_terminated(self._id, status=status)


def _parts(entries: Sequence[Any], most: int) -> list[list[Any]]:
    """The entries in parts of at most so many."""
    left = iter(entries)
    return list(iter(lambda: list(islice(left, most)), []))
