"""A process that does runs of a study, one after the other, as it is told on its standard input.

It ends as soon as that is closed, whatever it is doing: whoever started it is gone, or wants no more of it.
"""

from __future__ import annotations

import os
import queue
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

import torch

from fedham_flwr.core.errors import UnwritableError
from fedham_flwr.study.messages import Event, read_order, write_event
from fedham_flwr.study.running import carry_out
from fedham_flwr.study.runs import RunSpec

LOG = "run.log"
"""In `runs/<key>`: all that the run has printed, of all its attempts."""


class Teller:
    """Tells whoever started this process of a run.

    Args:
        spec: the run.
        out: the way there.
        answers: that come back.
    """

    def __init__(self, spec: RunSpec, out: TextIO, answers: queue.Queue[bool]) -> None:
        self._spec, self._out, self._answers = spec, out, answers

    def round(self, number: int) -> None:
        """As `Listener.round`."""
        self.tell(Event("round", self._spec.key, number))

    def step(self, number: int, value: float) -> bool:
        """As `Listener.step`; the answer is waited for, so that a run ends at the step that decides it."""
        self.tell(Event("step", self._spec.key, number, value))
        return self._spec.role != "tuning" or not self._answers.get()

    def tell(self, event: Event) -> None:
        """Send an event."""
        self._out.write(write_event(event))
        self._out.flush()


def main() -> None:
    """Do runs until the standard input is closed."""
    orders, out = _channels()
    torch.set_num_threads(1)
    torch.set_num_interop_threads(1)
    runs: queue.Queue[tuple[RunSpec, Path]] = queue.Queue()
    answers: queue.Queue[bool] = queue.Queue()
    threading.Thread(target=_listen, args=(orders, runs, answers), daemon=True).start()
    out.write(write_event(Event("ready")))
    out.flush()
    while True:
        spec, folder = runs.get()
        teller = Teller(spec, out, answers)
        try:
            with _printing_to(folder / LOG):
                event = Event("ended", spec.key, result=carry_out(spec, folder, teller))
        except (UnwritableError, OSError) as error:
            event = Event("full", spec.key, error=str(error))
        teller.tell(event)


def _channels() -> tuple[TextIO, TextIO]:
    """The ways from and to whoever started this process, which nothing that a run does reads or prints to."""
    orders, out = os.fdopen(os.dup(0), encoding="utf-8"), os.fdopen(os.dup(1), "w", encoding="utf-8")
    nowhere = os.open(os.devnull, os.O_RDWR)
    for number in (0, 1, 2):
        os.dup2(nowhere, number)
    os.close(nowhere)
    return orders, out


def _listen(orders: TextIO, runs: queue.Queue[tuple[RunSpec, Path]], answers: queue.Queue[bool]) -> None:
    for line in orders:
        order = read_order(line)
        if isinstance(order, bool):
            answers.put(order)
        else:
            runs.put(order)
    os._exit(0)


@contextmanager
def _printing_to(log: Path) -> Iterator[None]:
    """Have all that is printed appended to a file, also by code that is not Python's."""
    log.parent.mkdir(parents=True, exist_ok=True)
    nowhere, file = os.open(os.devnull, os.O_WRONLY), os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        for number in (1, 2):
            os.dup2(file, number)
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        for number in (1, 2):
            os.dup2(nowhere, number)
        os.close(nowhere)
        os.close(file)
