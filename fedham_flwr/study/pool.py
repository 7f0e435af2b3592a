"""Workers that do the runs of a study side by side: processes of this machine. `ray_pool` has those of a cluster."""

from __future__ import annotations

import dataclasses
import queue
from pathlib import Path
from typing import Protocol

from fedham_flwr.core.errors import UserError
from fedham_flwr.study.messages import Event
from fedham_flwr.study.process import Worker
from fedham_flwr.study.runs import RunSpec


class Pool(Protocol):
    """Some workers, each of which does one run at a time.

    Attributes:
        workers: how many there are at most.
    """

    workers: int

    def submit(self, spec: RunSpec, folder: Path) -> None:
        """Have a run done; never more than `workers` at once.

        Args:
            spec: the run.
            folder: where, on a file system that the workers share with this process.
        """

    def answer(self, key: str, stop: bool) -> None:
        """Say what to do after a step of a tuning run, which waits for that.

        Args:
            key: of the run.
            stop: it is to end.
        """

    def events(self, timeout: float) -> list[Event]:
        """What has happened since the last time: of runs only, and a worker that has died is replaced.

        Args:
            timeout: seconds to wait for something to happen.

        Raises:
            UserError: there can be no workers.
        """

    def end(self, key: str) -> None:
        """End a run now, with its worker, in whose place another one comes when there is a run to do.

        Args:
            key: of the run, of which nothing more is told.
        """

    def close(self) -> None:
        """End all workers now; what they were doing goes on from its checkpoint when it is submitted again."""


class LocalPool:
    """Processes of this machine, which are started when there is something to do.

    Args:
        workers: how many at most.
    """

    def __init__(self, workers: int) -> None:
        self.workers = workers
        self._events: queue.Queue[tuple[Worker, Event]] = queue.Queue()
        self._all: list[Worker] = []

    def submit(self, spec: RunSpec, folder: Path) -> None:
        """As `Pool.submit`."""
        free = next((worker for worker in self._all if not worker.key), None)
        if free is None:
            if len(self._all) >= self.workers:
                raise ValueError(f"each of the {self.workers} workers has a run")
            free = Worker(self._events)
            self._all.append(free)
        free.submit(spec, folder)

    def answer(self, key: str, stop: bool) -> None:
        """As `Pool.answer`."""
        for worker in self._all:
            if worker.key == key:
                worker.answer(stop)

    def events(self, timeout: float) -> list[Event]:
        """As `Pool.events`."""
        found: list[tuple[Worker, Event]] = []
        try:
            found.append(self._events.get(timeout=timeout))
            while True:
                found.append(self._events.get_nowait())
        except queue.Empty:
            pass
        told = [self._seen(worker, event) for worker, event in found]
        return [event for event in told if event.key]

    def end(self, key: str) -> None:
        """As `Pool.end`."""
        for worker in [each for each in self._all if each.key == key]:
            self._all = [each for each in self._all if each is not worker]
            worker.close()

    def close(self) -> None:
        """As `Pool.close`."""
        for worker in self._all:
            worker.close()
        self._all = []

    def _seen(self, worker: Worker, event: Event) -> Event:
        """An event with the key of its run, after what it says of the worker has been taken note of."""
        if worker not in self._all:  # it was ended, and what it had still to say is of no use
            return dataclasses.replace(event, key="")
        if event.kind == "ready":
            worker.ready = True
        elif event.kind in ("ended", "full"):
            worker.key = ""
        elif event.kind == "died":
            key, worker.key = worker.key, ""
            self._all = [each for each in self._all if each is not worker]
            worker.close()
            if not worker.ready:
                raise UserError(f"a worker of the study cannot be started: {event.error}")
            return dataclasses.replace(event, key=key)
        return event
