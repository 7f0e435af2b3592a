"""A process that does runs of a study, one after the other, as it is told by lines on its standard input."""

from __future__ import annotations

import os
import queue
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

import torch

from fedham_flwr.core.errors import UnwritableError
from fedham_flwr.study.messages import Event, read_answer, read_run, write_event
from fedham_flwr.study.running import carry_out
from fedham_flwr.study.runs import RunSpec

LOG = "run.log"
"""In `runs/<key>`: all that the run has printed, of all its attempts."""


class Teller:
    """Tells whoever started this process of a run.

    Args:
        spec: the run.
        out: the way there.
        lines: that come back.
    """

    def __init__(self, spec: RunSpec, out: TextIO, lines: queue.SimpleQueue[str]) -> None:
        self._spec, self._out, self._lines = spec, out, lines

    def round(self, number: int) -> None:
        """As `Listener.round`."""
        self.tell(Event("round", self._spec.key, number))

    def step(self, number: int, value: float) -> bool:
        """As `Listener.step`; the answer is waited for, so that a run ends at the step that decides it."""
        self.tell(Event("step", self._spec.key, number, value))
        return self._spec.role != "tuning" or not read_answer(self._lines.get())

    def tell(self, event: Event) -> None:
        """Send an event."""
        self._out.write(write_event(event))
        self._out.flush()


def work(lines: queue.SimpleQueue[str]) -> None:
    """Do runs until this process ends.

    Args:
        lines: the orders as they come.
    """
    out = _channel()
    torch.set_num_threads(1)
    torch.set_num_interop_threads(1)
    out.write(write_event(Event("ready")))
    out.flush()
    while True:
        spec, folder = read_run(lines.get())
        teller = Teller(spec, out, lines)
        try:
            with _printing_to(folder / LOG):
                event = Event("ended", spec.key, result=carry_out(spec, folder, teller))
        except (UnwritableError, OSError) as error:
            event = Event("full", spec.key, error=str(error))
        teller.tell(event)


def _channel() -> TextIO:
    """The way to whoever started this process, which nothing that a run prints goes; nor does it read its orders."""
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    nowhere = os.open(os.devnull, os.O_RDWR)
    for number in (0, 1, 2):
        os.dup2(nowhere, number)
    os.close(nowhere)
    return out


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
