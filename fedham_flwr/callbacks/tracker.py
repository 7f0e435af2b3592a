"""Trackers: callbacks that hand a run's numbers to another program, whose failure costs the run nothing."""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from fedham_flwr.callbacks.protocol import RoundReport, RunEnd, RunStart
from fedham_flwr.callbacks.scalars import of_end, of_round
from fedham_flwr.core.callback_settings import TrackingSettings
from fedham_flwr.core.errors import UserError, described
from fedham_flwr.core.files import replacing

log = logging.getLogger("fedham_flwr")

FILE = "tracking.json"
"""In a run's directory: tracker -> the name under which it knows the run."""


class Log(Protocol):
    """One program's account of a run."""

    def open(self, run: RunStart) -> bool:
        """Begin, or go on with what there is of a run that is continued.

        Args:
            run: what there is to know of it.

        Returns:
            Whether what was told before the run was interrupted is there.
        """

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Take the numbers of a round.

        Args:
            step: the round.
            values: by name.
        """

    def close(self, error: str | None, values: Mapping[str, float]) -> None:
        """End the account.

        Args:
            error: what ended the run before its time.
            values: what came of the run, by name.
        """


class Tracker:
    """Tells a log of a run; after its first failure it is warned of, and told nothing more.

    Args:
        name: of the program.
        to: its log.
        settings: what it is told.
    """

    def __init__(self, name: str, to: Log, settings: TrackingSettings) -> None:
        self.name = name
        self._log, self._settings = to, settings
        self._lost = self._goes_on = False

    def on_start(self, run: RunStart) -> None:
        """Open the log.

        Raises:
            UserError: it cannot be opened.
        """
        self._lost = False
        try:
            self._goes_on = self._log.open(run)
        except Exception as error:  # whatever another program raises
            raise UserError(f'tracker="{self.name}" cannot begin: {described(error)}') from error

    def on_round(self, report: RoundReport) -> str | None:
        """Write the round's numbers."""
        if self._lost or (report.again and self._goes_on):
            return None
        try:
            self._log.write(report.round, of_round(report, self._settings.log_clients))
        except Exception as error:  # whatever another program raises
            self._lost = True
            text = "the tracker %s failed in round %d and is told nothing more of this run, which goes on: %s"
            log.warning(text, self.name, report.round, described(error))
            with contextlib.suppress(Exception):
                self._log.close("the tracker failed", {})
        return None

    def on_end(self, end: RunEnd) -> None:
        """Write what came of the run, and close the log."""
        if self._lost:
            return
        try:
            self._log.close(end.error, of_end(end.summary))
        except Exception as error:  # whatever another program raises
            log.warning("the tracker %s failed at the end of the run: %s", self.name, described(error))


def name_of(run: RunStart, settings: TrackingSettings) -> str:
    """What a tracker calls a run."""
    return settings.run_name or f"{run.strategy} {run.directory.name}"


def recall(directory: Path, tracker: str) -> str:
    """The name under which a tracker knows a run; empty if it does not.

    Args:
        directory: the run's.
        tracker: its name.
    """
    return str(_known(directory).get(tracker, ""))


def remember(directory: Path, tracker: str, name: str) -> None:
    """Write down the name under which a tracker knows a run.

    Args:
        directory: the run's.
        tracker: its name.
        name: the run's there.
    """
    with replacing(directory / FILE) as part:
        part.write_text(json.dumps({**_known(directory), tracker: name}, indent=2) + "\n", encoding="utf-8")


def _known(directory: Path) -> dict[str, object]:
    try:
        return dict(json.loads((directory / FILE).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return {}
