"""A run in a process of its own that is interrupted after some time, as Ctrl-C in a terminal does it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

from fedham_flwr.core.packages import TOP

CONFIG = 'strategy="fedper" num-server-rounds=2000 samples-per-client=40 checkpoint-every=20 device="cpu"'


class Interrupted(NamedTuple):
    """What came of it: when, the exit code, what was printed, and the directories that are left."""

    after: float
    code: int
    output: str
    left: list[Path]

    @property
    def fault(self) -> str:
        """What is not as it should be; empty if nothing is."""
        text = self.output
        # A signal that comes before Python has put up its own handler ends the process, as shells say by 130 too.
        if self.code != 130 and not (self.code == -signal.SIGINT and self.after < 0.15):
            return f"exit code {self.code}"
        if "Traceback" in text or "Exception ignored" in text:
            return "a stack is shown"
        if self.left and f"what there is so far is in {self.left[0]}" not in text:
            return f"{self.left[0]} is left, and not said"
        if self.code == 130 and "interrupted" not in text:
            return "nothing is said"
        return ""


def interrupt(folder: Path, after: float, *options: str, program: str = "") -> Interrupted:
    """Start a run, and send SIGINT to it and to all that it has started.

    Args:
        folder: where it works; made.
        after: seconds.
        options: of the command line.
        program: Python code in place of `run_simulation.py`.
    """
    folder.mkdir(parents=True)
    start = ["-c", program] if program else [str(TOP / "run_simulation.py"), "-c", CONFIG, *options]
    environment = {**os.environ, "PYTHONPATH": str(TOP), "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        [sys.executable, *start], cwd=folder, env=environment, text=True, start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    ) as process:  # fmt: skip
        time.sleep(after)
        os.killpg(process.pid, signal.SIGINT)
        try:
            output, _ = process.communicate(timeout=120)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            output, _ = process.communicate()
            output += "\nit did not end"
    left = sorted(path for path in (folder / "results").glob("*/*"))
    if (folder / "results").exists() and not left:
        left = [folder / "results"]
    return Interrupted(after, process.returncode, output, left)
