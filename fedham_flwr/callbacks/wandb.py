"""Weights & Biases: a run in a project, in files in the run's directory unless it is told to be online."""

from __future__ import annotations

import os
import secrets
from collections.abc import Mapping
from typing import Any, final

from fedham_flwr.callbacks.protocol import RunStart
from fedham_flwr.callbacks.tracker import name_of, recall, remember
from fedham_flwr.core.callback_settings import TrackingSettings


@final
class Log:
    """Tells W&B through a run of its own, beside whatever run the program may have there.

    Args:
        settings: the project, the name of the run, and whether anything is sent.
    """

    def __init__(self, settings: TrackingSettings) -> None:
        self._settings = settings
        self._run: Any = None

    def open(self, run: RunStart) -> bool:
        """As `tracker.Log.open`."""
        # What W&B would send its makers of its errors nobody has asked for.
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        import wandb

        known = recall(run.directory, "wandb")
        identity = known or secrets.token_hex(4)
        self._run = wandb.init(
            project=self._settings.project,
            name=name_of(run, self._settings),
            id=identity,
            dir=str(run.directory),
            config=dict(run.settings),
            mode=self._settings.wandb_mode,
            resume="allow" if known else None,
            reinit="create_new",
        )
        # A round that is done again has a step of its own there, so the round is what curves are drawn over.
        self._run.define_metric("round")
        self._run.define_metric("*", step_metric="round")
        remember(run.directory, "wandb", identity)
        return bool(known)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """As `tracker.Log.write`."""
        self._run.log({**values, "round": step})

    def close(self, error: str | None, values: Mapping[str, float]) -> None:
        """As `tracker.Log.close`."""
        self._run.summary.update(dict(values))
        self._run.finish(exit_code=0 if error is None else 1)
