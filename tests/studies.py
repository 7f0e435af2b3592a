"""Small studies in processes of their own: begun, killed, and what they have left."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fedham_flwr.core.packages import TOP

COMMAND = "import sys; from run_simulation import fedham; sys.exit(fedham())"
SETTINGS = """
[settings]
samples-per-client = 60
num-server-rounds = 4
evaluate-every = 1
checkpoint-every = 1
model-cards = 0
device = "cpu"
"""
STUDY = f"""
name = "small"
methods = ["local", "fedper"]
floors = false
seeds = [0, 1]
{SETTINGS}
[tune]
trials = 2
"""
WAIT = 120.0


def environment(place: Path) -> dict[str, str]:
    """That of a process which finds this project, the methods of tests, and the data that are decoded already."""
    paths = f"{TOP}{os.pathsep}{TOP / 'tests'}"
    return {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "XDG_CACHE_HOME": str(place / "cache")}


def start(place: Path, file: str, folder: Path, *options: str) -> subprocess.Popen[str]:
    """Start a study in a process of its own."""
    given = ["study", str(place / file), "--output", str(folder), "--workers", "2", *options]
    return subprocess.Popen(
        [sys.executable, "-c", COMMAND, *given], cwd=place, env=environment(place), text=True, start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip


def whole(place: Path, file: str, folder: Path, code: int = 0, *options: str) -> str:
    """Carry a study out; what it printed."""
    process = start(place, file, folder, *options)
    output, _ = process.communicate(timeout=WAIT)
    assert process.returncode == code, output
    assert "Traceback" not in output
    return output


def children(pid: int) -> set[int]:
    """The processes that a process has started."""
    found = set()
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            if int(entry.read_text().rpartition(")")[2].split()[1]) == pid:
                found.add(int(entry.parent.name))
        except OSError:
            continue
    return found


def gone(pids: set[int], within: float = 5.0) -> bool:
    """Whether processes end in time."""
    end = time.monotonic() + within
    while there := {pid for pid in pids if running(pid)}:
        if time.monotonic() > end:
            return not there
        time.sleep(0.02)
    return True


def running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def log(folder: Path) -> str:
    file = folder / "study.log"
    return file.read_text() if file.exists() else ""


def begun(folder: Path, before: int = 0) -> bool:
    """Whether a run has begun since the log had so many characters."""
    return re.search(r"run \w+ begins", log(folder)[before:]) is not None


def halfway(folder: Path) -> bool:
    """Whether a run that is not done has a checkpoint."""
    return any(not (run.parents[3] / "run.json").exists() for run in folder.glob("runs/*/*/*/checkpoints/round-*"))


def wait_for(happened: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    """Wait until something has happened, or a process has ended."""
    end = time.monotonic() + WAIT
    while not happened() and process.poll() is None:
        assert time.monotonic() < end
        time.sleep(0.01)


def tables(folder: Path) -> dict[str, Any]:
    """The tables of a study by name, without columns of seconds and of places named by the time."""
    found = {}
    for file in sorted((folder / "tables").glob("*.csv")):
        rows = list(csv.DictReader(io.StringIO(file.read_text())))
        found[file.name] = [
            {name: text for name, text in row.items() if not re.search(r"\bs\b|directory", name)} for row in rows
        ]
    return found


def stamps(folder: Path) -> dict[str, tuple[int, int]]:
    """The run.json files that there are: where and when each was written."""
    return {file.parent.name: (file.stat().st_ino, file.stat().st_mtime_ns) for file in folder.glob("runs/*/run.json")}


def digests(folder: Path) -> dict[str, str]:
    """Key -> digest of the results."""
    found = folder.glob("runs/*/*/*/summary.json")
    return {file.parents[2].name: json.loads(file.read_text())["digest"] for file in found}
