"""Processes found by a mark in their environment, which their children inherit, in sessions of their own too.

So exactly those are stopped that a federation started, whichever of its processes did, and nothing else is sent a
signal. It needs Linux' /proc.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

FEDERATION, PART = "FEDHAM_FEDERATION", "FEDHAM_PART"
"""Environment variables: the folder of the federation, and which of its parts a process belongs to."""
POLL = 0.1
"""Seconds between two looks."""


class FederationError(Exception):
    """A part of a federation could not be started, or did not do its work in time: a sentence, then its log's end."""


def environment(folder: Path, part: str) -> dict[str, str]:
    """The mark, to be added to the environment of what is started.

    Args:
        folder: the federation's.
        part: a name.
    """
    return {FEDERATION: os.path.abspath(folder), PART: part}


def processes(folder: Path, part: str = "") -> dict[int, str]:
    """Process id and command line of everything that belongs to a federation, or to one part of it.

    Args:
        folder: the federation's.
        part: `superlink`, `node-<site>` or `run-<number>`; empty: all.
    """
    return {pid: _command(pid) for pid in _pids() if _belongs(pid, folder, part)}


def stop(folder: Path, part: str = "", patience: float = 10.0) -> int:
    """Stop what belongs to a federation, or to one part of it, and nothing else.

    Args:
        folder: the federation's.
        part: as of `processes`.
        patience: seconds from SIGTERM to SIGKILL; 0: SIGKILL at once.

    Returns:
        How many processes there were.

    Raises:
        FederationError: one is still there half a minute after SIGKILL.
    """
    found = _signal(folder, part, signal.SIGTERM if patience else signal.SIGKILL)
    count, end = len(found), time.monotonic() + patience
    while processes(folder, part):
        if time.monotonic() > end:
            count += len(_signal(folder, part, signal.SIGKILL) - found)
        if time.monotonic() > end + 30.0:
            raise FederationError(f"of {folder} these cannot be stopped: {processes(folder, part)}")
        time.sleep(POLL)
    return count


def _signal(folder: Path, part: str, number: signal.Signals) -> set[int]:
    sent = set()
    for pid in _pids():
        if not _belongs(pid, folder, part):
            continue
        try:
            handle = os.pidfd_open(pid)
        except ProcessLookupError:
            continue
        try:
            if _belongs(pid, folder, part):  # still: the handle is of this process, and not of one that got its number
                signal.pidfd_send_signal(handle, number)
                sent.add(pid)
        except ProcessLookupError:
            pass
        finally:
            os.close(handle)
    return sent


def _pids() -> Iterator[int]:
    if not Path("/proc/self/environ").exists():
        raise FederationError("there is no /proc on this system, by which the processes of a federation are found")
    return (int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdecimal())


def _belongs(pid: int, folder: Path, part: str) -> bool:
    try:
        environment = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:  # it has ended, or is another user's
        return False
    marks = [f"{FEDERATION}={os.path.abspath(folder)}", *([f"{PART}={part}"] if part else [])]
    return all(mark.encode() in environment for mark in marks)


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    except OSError:
        return ""
