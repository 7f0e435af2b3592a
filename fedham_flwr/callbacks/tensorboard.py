"""TensorBoard: event files in the run's directory, in the folder `tensorboard`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, final

from fedham_flwr.callbacks.protocol import RunStart
from fedham_flwr.core.callback_settings import TrackingSettings

FOLDER = "tensorboard"


@final
class Log:
    """Writes scalars over rounds, and at the end the settings beside what came of them (the page HPARAMS).

    Args:
        settings: not read, since all lies in the run's directory.
    """

    def __init__(self, settings: TrackingSettings) -> None:
        self._writer: Any = None
        self._run: RunStart | None = None
        self._last = 0

    def open(self, run: RunStart) -> bool:
        """As `tracker.Log.open`; steps that are done again take the place of what was written of them."""
        from torch.utils.tensorboard import SummaryWriter

        folder = run.directory / FOLDER
        goes_on = any(folder.glob("events.out.tfevents.*"))
        self._run, self._last = run, run.done
        self._writer = SummaryWriter(str(folder), purge_step=run.done + 1 if goes_on else None)
        return goes_on

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """As `tracker.Log.write`."""
        self._last = step
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def close(self, error: str | None, values: Mapping[str, float]) -> None:
        """As `tracker.Log.close`."""
        from torch.utils.tensorboard.summary import hparams

        if self._run and values:
            for entry in hparams(dict(self._run.settings), dict(values)):
                self._writer.file_writer.add_summary(entry)
            for name, value in values.items():
                self._writer.add_scalar(name, value, self._last)
        self._writer.close()
