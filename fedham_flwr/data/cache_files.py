"""What was written into a folder of the cache, by sizes, times and digests, and whether it is still what lies there.

A list, `files.json`, is written with the folder. Looking at sizes and times costs microseconds, and is done whenever a
folder is opened; files of another time, and small files always, are read and compared by their SHA-256. What changed
without a trace, as on a disk that fails, only reading everything shows: that is done once for each run, at its start.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import shutil
from collections.abc import Iterator
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from fedham_flwr.core.files import digest, replacing

log = logging.getLogger("fedham_flwr")

LIST = "files.json"
"""Of the files of a folder."""
CHECKED = ".checked"
"""In a folder: the run at whose start all of it was read last."""
SMALL = 1 << 18
"""Bytes up to which a file is read whenever its folder is opened: a fifth of a millisecond."""

_RUN: ContextVar[str] = ContextVar("run", default="")


@contextlib.contextmanager
def start_of(run: str) -> Iterator[None]:
    """Have what is opened in this block read whole and compared, once for each folder and run.

    Args:
        run: its id.
    """
    token = _RUN.set(run)
    try:
        yield
    finally:
        _RUN.reset(token)


def write_list(folder: Path) -> None:
    """Write down what is in a folder that is complete.

    Args:
        folder: with files; what is in folders in it has lists of its own.
    """
    files = {}
    for file in sorted(each for each in folder.iterdir() if each.is_file()):
        stat = file.stat()
        files[file.name] = [stat.st_size, stat.st_mtime_ns, digest(file)]
    _write(folder, files)


def is_checked(folder: Path) -> bool:
    """Whether a folder is as it was written, by what is seen at a glance, and was read whole in this run if it must."""
    return not fault(folder) and (not _RUN.get() or _checked(folder) == _RUN.get())


def fault(folder: Path, whole: bool = False) -> str:
    """What is wrong with a folder; empty if nothing is.

    Args:
        folder: of the cache.
        whole: read all files, whatever their sizes and times say.
    """
    written = _read(folder)
    if written is None:
        return f"{LIST} is missing or damaged" if folder.exists() else "it is missing"
    moved = False
    for name, (size, changed, sha) in written.items():
        try:
            stat = (folder / name).stat()
            if stat.st_size != size:
                return f"{name} has {stat.st_size:,} bytes, and {size:,} were written"
            moved |= stat.st_mtime_ns != changed
            if (whole or size <= SMALL or stat.st_mtime_ns != changed) and digest(folder / name) != sha:
                return f"{name} has other content than was written"
        except OSError as error:
            return f"{name}: {error.strerror}"
    if moved:  # a cache that was copied: it is not read again the next time
        with contextlib.suppress(OSError):
            _write(folder, {name: [of[0], (folder / name).stat().st_mtime_ns, of[2]] for name, of in written.items()})
    return ""


def mend(folder: Path) -> bool:
    """Look at a folder, all of it if a run starts, and set it aside if it is damaged; whether it must be made anew.

    Args:
        folder: whose lock is held.
    """
    run = _RUN.get()
    why = fault(folder, whole=bool(run) and _checked(folder) != run)
    if not why:
        note_checked(folder)
        return False
    if folder.exists():
        aside = folder.with_name(f"damaged-{folder.name}")
        shutil.rmtree(aside, ignore_errors=True)  # of an earlier time
        folder.rename(aside)
        log.warning(
            "the decoded data in %s are damaged (%s): they are set aside as %s, which may be deleted, and made anew",
            folder,
            why,
            aside.name,
        )
    return True


def note_checked(folder: Path) -> None:
    """Note that all of a folder was read, or written, in this run."""
    if _RUN.get() and _checked(folder) != _RUN.get():
        with contextlib.suppress(OSError):  # of a cache that can only be read
            (folder / CHECKED).write_text(_RUN.get())


def _checked(folder: Path) -> str:
    with contextlib.suppress(OSError, ValueError):
        return (folder / CHECKED).read_text()
    return ""


def _write(folder: Path, files: dict[str, list[Any]]) -> None:
    with replacing(folder / LIST) as part:
        part.write_text(json.dumps({"files": files, "sha256": _own_digest(files)}))


def _read(folder: Path) -> dict[str, Any] | None:
    """The list, by the names of the files; None if there is none, or it is damaged itself."""
    try:
        read = json.loads((folder / LIST).read_text())
        files: dict[str, Any] = read["files"]
        return files if read["sha256"] == _own_digest(files) else None
    except (OSError, ValueError, TypeError, KeyError):
        return None


def _own_digest(files: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()


def identity(path: Path) -> tuple[int, int, int]:
    """What changes when a file is another one under the same name."""
    stat = os.stat(path)
    return stat.st_ino, stat.st_size, stat.st_mtime_ns
