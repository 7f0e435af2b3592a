"""A worker of a study as whoever has started it sees it."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

from fedham_flwr.core.errors import first_line
from fedham_flwr.study.messages import Event, read_event, write_answer, write_run
from fedham_flwr.study.runs import RunSpec

START = Path(__file__).with_name("start.py")
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "FLWR_TELEMETRY_ENABLED": "0",
    "MPLBACKEND": "Agg",
}  # fmt: skip
PATIENCE = 5.0
"""Seconds in which a process ends that was killed."""


class Worker:
    """A process that does runs, one at a time.

    Args:
        events: gets what it tells.

    Attributes:
        key: of the run that it does; empty while it has none.
        ready: it has come up.
    """

    def __init__(self, events: queue.Queue[tuple[Worker, Event]]) -> None:
        self.key, self.ready, self._events = "", False, events
        self._said = tempfile.TemporaryFile()  # noqa: SIM115  # closed with the process
        # In a group of its own: an interrupt at the terminal is for whoever has started it, who decides what ends.
        self._process = subprocess.Popen(  # noqa: S603
            [sys.executable, "-P", str(START), json.dumps(sys.path)], env={**os.environ, **ENVIRONMENT}, text=True,
            encoding="utf-8", stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._said, process_group=0,
        )  # fmt: skip
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._listener.start()

    def submit(self, spec: RunSpec, folder: Path) -> None:
        """Have it do a run.

        Args:
            spec: the run.
            folder: where.
        """
        self.key = spec.key
        self._send(write_run(spec, folder))

    def answer(self, stop: bool) -> None:
        """Say what to do after a step."""
        self._send(write_answer(stop))

    def close(self) -> None:
        """End it now, with all that it has started."""
        try:
            os.killpg(self._process.pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            self._process.kill()
        self._listener.join(PATIENCE)  # it ends with the process, of which it takes note
        for file in (self._process.stdin, self._process.stdout, self._said):
            with contextlib.suppress(OSError):  # of an order that it did not read any more
                if file is not None:
                    file.close()

    def _send(self, line: str) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):  # it is gone, which is told by itself
            self._process.stdin.write(line)
            self._process.stdin.flush()

    def _listen(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.endswith("\n"):
                self._events.put((self, read_event(line)))
        self._events.put((self, Event("died", self.key, error=self._why())))

    def _why(self) -> str:
        """How it has ended."""
        code = self._process.wait()
        if code < 0:
            name = signal.Signals(-code).name if -code in signal.valid_signals() else f"signal {-code}"
            memory = ", as when memory runs out" if name == "SIGKILL" else ""
            return f"its process was ended by {name}{memory}"
        self._said.seek(0)
        lines = self._said.read().decode(errors="replace").strip().splitlines()
        said = "" if self.ready or not lines else f": {first_line(lines[-1])}"
        return f"its process ended by itself, with the exit code {code}{said}"
