"""A run up to its first round, without a directory of its own: everything that it would refuse is refused here."""

from __future__ import annotations

import contextlib
import io
import logging
import tempfile
import time
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from fedham_flwr.client_app import make_client_app
from fedham_flwr.core.devices import check_device
from fedham_flwr.core.errors import UserError, described
from fedham_flwr.core.imports import section_of
from fedham_flwr.core.threads import one_thread
from fedham_flwr.data.client_data import ClientData
from fedham_flwr.federation.messages import Profile
from fedham_flwr.federation.node import open_data
from fedham_flwr.federation.roster import order
from fedham_flwr.federation.rounds import RoundStrategy
from fedham_flwr.idle import Asked, check_sections
from fedham_flwr.reporting.journal import Journal
from fedham_flwr.reporting.run_directory import RunDirectory
from fedham_flwr.run_settings import Settings
from fedham_flwr.runners import Simulation
from fedham_flwr.runners.cohort import CohortGrid
from fedham_flwr.runners.in_process import InProcessGrid
from fedham_flwr.server_app import prepare
from fedham_flwr.settings import Value, flatten, parse


@dataclass
class Rehearsal:
    """A run that is ready for its first round.

    Attributes:
        settings: the run's.
        grid: the way to its clients, all in this process.
        strategy: its server half.
        journal: writes to a folder that is removed.
        warnings: what was said on the way.
        seconds: that it took to open the data of all clients and to build the model.
    """

    settings: Settings
    grid: InProcessGrid
    strategy: RoundStrategy
    journal: Journal
    warnings: list[str] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def profiles(self) -> list[Profile]:
        """What each client says of itself, in order."""
        known = self.strategy.setup.roster.profiles
        return [known[client] for client in order(known)]

    def data(self) -> ClientData:
        """The data of a client, the first one."""
        return open_data(next(iter(self.grid.contexts.values())), self.settings)


@contextlib.contextmanager
def rehearsed(given: Mapping[str, Value], simulation: Simulation, asked: Collection[str] = ()) -> Iterator[Rehearsal]:
    """Do all that a run does before its first round, and remove what it wrote.

    Args:
        given: settings by key.
        simulation: how the clients would be run.
        asked: keys that somebody chose for this run.

    Raises:
        UserError: as the run would say it.
    """
    simulation.check()
    settings = parse(given)
    check_device(settings.device, simulation.ray_address, settings.precision)
    check_sections(asked, settings)
    together = simulation.backend == "cohort" or (simulation.backend == "ray" and simulation.engine == "cohort")
    began = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="fedham-doctor-") as folder, one_thread(), _heard() as warnings:
        directory = RunDirectory.create(Path(folder), section_of(settings.strategy), settings.seed, flatten(settings))
        grid = (CohortGrid if together else InProcessGrid)(make_client_app(given), simulation.clients)
        journal = Journal(directory, settings, began)
        with contextlib.redirect_stdout(io.StringIO()):
            try:
                strategy = prepare(grid, settings, journal, None, Asked(asked, here=True))
            except UserError:
                raise
            except Exception as error:  # of a user's own code
                raise UserError(f"the run would fail: {described(error)}") from error
            yield Rehearsal(settings, grid, strategy, journal, warnings, time.perf_counter() - began)


@contextlib.contextmanager
def _heard() -> Iterator[list[str]]:
    """Warnings of this package as a list, in place of the terminal."""
    log, said = logging.getLogger("fedham_flwr"), list[str]()

    class Listener(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            said.append(record.getMessage())

    listener, before, spread = Listener(logging.WARNING), list(log.handlers), log.propagate
    log.handlers, log.propagate = [listener], False
    try:
        yield said
    finally:
        log.handlers, log.propagate = before, spread
