"""Workers of a study on a Ray cluster: each actor has a worker process of its own, as on one machine.

The study's folder has to be on a file system that all machines of the cluster share.
"""

from __future__ import annotations

import contextlib
import time
from pathlib import Path
from typing import Any

from fedham_flwr.core.errors import UserError
from fedham_flwr.runners.actors import WorkerDiedError, get
from fedham_flwr.runners.clusters import cluster
from fedham_flwr.study.messages import Event
from fedham_flwr.study.pool import LocalPool
from fedham_flwr.study.runs import RunSpec

LISTEN = 60.0
"""Seconds for which an actor is asked for news; then it is asked again."""
PATIENCE = 20.0
"""Seconds in which an actor ends its worker; then it is ended itself."""


class _Seat:
    """An actor, and the run that it does.

    Attributes:
        actor: Ray's.
        key: of the run; empty without one.
        news: a reference to its next events.
    """

    def __init__(self) -> None:
        import ray

        # Two at a time: one call waits for events while others give runs and answers.
        self.actor: Any = ray.remote(num_cpus=1, max_concurrency=4)(LocalPool).remote(1)
        self.key = ""
        self.news: Any = self.actor.events.remote(LISTEN)


class RayPool:
    """Actors of one processor each.

    Args:
        address: of the cluster; empty for that of `RAY_ADDRESS`, or one of this machine.
        workers: how many at most; 0 for as many as the cluster has processors.

    Raises:
        UserError: there is no cluster, or it has no processor.
    """

    def __init__(self, address: str, workers: int = 0) -> None:
        self._stack = contextlib.ExitStack()
        there = sum(node.cpus for node in self._stack.enter_context(cluster(address)))
        if not there:
            self._stack.close()
            raise UserError(f"the Ray cluster at {address} has no processor for a worker")
        self.workers = min(workers, there) if workers else there
        self._seats: list[_Seat] = []

    def submit(self, spec: RunSpec, folder: Path) -> None:
        """As `Pool.submit`."""
        free = next((seat for seat in self._seats if not seat.key), None)
        if free is None:
            if len(self._seats) >= self.workers:
                raise ValueError(f"each of the {self.workers} workers has a run")
            free = _Seat()
            self._seats.append(free)
        free.key = spec.key
        free.actor.submit.remote(spec, folder.absolute())

    def answer(self, key: str, stop: bool) -> None:
        """As `Pool.answer`."""
        for seat in self._seats:
            if seat.key == key:
                seat.actor.answer.remote(key, stop)

    def events(self, timeout: float) -> list[Event]:
        """As `Pool.events`."""
        import ray

        waiting = {seat.news: seat for seat in self._seats}
        if not waiting:
            return []
        done, _ = ray.wait(list(waiting), num_returns=1, timeout=timeout)
        return [event for news in done for event in self._heard(waiting[news])]

    def end(self, key: str) -> None:
        """As `Pool.end`."""
        import ray

        for seat in [each for each in self._seats if each.key == key]:
            with contextlib.suppress(WorkerDiedError, TimeoutError):  # of an actor that is gone, or never came
                get(seat.actor.end.remote(key), time.monotonic() + PATIENCE)  # else the process of its own would stay
            ray.kill(seat.actor)
            self._seats.remove(seat)

    def close(self) -> None:
        """As `Pool.close`."""
        import ray

        for seat in self._seats:
            ray.kill(seat.actor)
        self._seats = []
        self._stack.close()

    def _heard(self, seat: _Seat) -> list[Event]:
        """The news of an actor, which is asked for more; of one that is gone that it is."""
        try:
            events: list[Event] = get(seat.news)
        except WorkerDiedError as error:
            self._seats.remove(seat)
            return [Event("died", seat.key, error=f"its actor is gone ({error})")] if seat.key else []
        seat.news = seat.actor.events.remote(LISTEN)
        if any(event.kind in ("ended", "full", "died") for event in events):
            seat.key = ""
        return events
