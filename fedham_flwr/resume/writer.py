"""The one process that writes to a run's directory: it holds a lock that the system opens when the process ends.

While a run is on, `<run>/.writer` is locked and says who holds it: process, machine, and since when. A process that
was killed leaves the file without the lock, and the next one takes it over.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import socket
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from fedham_flwr.core.errors import UserError

log = logging.getLogger("fedham_flwr")

FILE = ".writer"
_HELD: set[Path] = set()
"""Directories that this process writes to: a lock of some file systems is the process's, and would be had twice."""
_ONE = threading.Lock()


@contextlib.contextmanager
def only_writer(run: Path, what: str = "run") -> Iterator[None]:
    """Be the only one that writes to the directory of a run. Where the file system has no locks that is said.

    Args:
        run: the directory.
        what: it is of, for the error.

    Raises:
        UserError: another process, or another run of this one, writes to it.
    """
    here = run.resolve()
    with _ONE:
        if here in _HELD:
            raise UserError(_refusal(run, what))
        opened = _lock(run, what)
        _HELD.add(here)
    try:
        yield
    finally:
        with _ONE:
            _HELD.discard(here)
            if opened is not None:
                with contextlib.suppress(OSError):
                    (run / FILE).unlink(missing_ok=True)  # before the lock is let go: nobody else's is taken away
                os.close(opened)


def check_free(run: Path) -> None:
    """Refuse a directory that somebody writes to, before anything is begun that takes time.

    Args:
        run: the directory.

    Raises:
        UserError: as `only_writer`.
    """
    if (run / FILE).exists():
        with only_writer(run):
            pass


def _lock(run: Path, what: str) -> int | None:
    """The locked file; None where there can be none."""
    while True:
        try:
            opened = os.open(run / FILE, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:  # a directory that cannot be written to, which others say better
            return _unlocked(run, error)
        try:
            _take(opened)
            if os.path.samestat(os.fstat(opened), os.stat(run / FILE)):
                break
        except (BlockingIOError, PermissionError):  # systems differ
            os.close(opened)
            raise UserError(_refusal(run, what)) from None
        except FileNotFoundError:  # whoever had the lock has just taken the file away: once more
            pass
        except (OSError, ImportError) as error:
            os.close(opened)
            return _unlocked(run, error)
        os.close(opened)
    facts = {
        "process": os.getpid(),
        "host": socket.gethostname(),
        "since": f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC",
    }
    with contextlib.suppress(OSError):  # of a disk that is full; the lock holds without
        os.ftruncate(opened, 0)
        os.write(opened, json.dumps(facts).encode())
    return opened


def _take(opened: int) -> None:
    """Lock a file, at once or not at all."""
    import fcntl  # not on every system

    fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _unlocked(run: Path, error: Exception) -> int | None:
    why = getattr(error, "strerror", None) or error
    log.warning("%s cannot be locked (%s): see to it that no other run is continued in it at the same time", run, why)
    return None


def _refusal(run: Path, what: str) -> str:
    try:
        told = json.loads((run / FILE).read_text(encoding="utf-8"))
        who = f"process {told['process']} on {told['host']} has been writing to it since {told['since']}"
    except (OSError, ValueError, KeyError, TypeError):
        who = "another process is writing to it"
    return f"{run} is the directory of a {what} that is going on: {who}; wait for its end, or stop it first"
