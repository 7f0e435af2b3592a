"""The files of personal states: each written whole or not at all, for its owner alone, and never thrown away.

Beside `<client>.safetensors` lie, with names that no client's file can have,

    .<client>.safetensors.lock              held while a process writes or sets aside
    .<client>.safetensors.<number>-*.part   what a process that was killed had begun; the next one removes it
    <client>.safetensors.corrupt-1          a file that was set aside, with the reason
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
from collections.abc import Iterator, Mapping
from pathlib import Path

from filelock import FileLock
from torch import Tensor

from fedham_flwr.core.errors import UserError
from fedham_flwr.core.files import sync
from fedham_flwr.core.parameters import Params
from fedham_flwr.state.format import Label, header, seal, unseal

LOCK_TIMEOUT = 60.0
"""Seconds to wait for another process of the same client to have written."""
OWN = ("corrupt", "newer", "older")
"""Reasons for setting a file aside that may well be this client's own; the others begin with `other-`."""


def peek(file: Path) -> str | None:
    """The checksum that the header of a file claims; nothing else is looked at, and nothing is verified.

    Returns:
        The checksum, empty if the header has none; None if there is no file.

    Raises:
        UnfitError: this is no safetensors file.
        OSError: it cannot be read.
    """
    try:
        with file.open("rb") as source:
            start = source.read(8)
            # No more than there is: a header of any length can be claimed.
            length = min(int.from_bytes(start, "little"), os.fstat(source.fileno()).st_size)
            return header(start + source.read(length)).get("checksum", "")
    except FileNotFoundError:
        return None


def read(file: Path, wanted: Label) -> tuple[Params, Label]:
    """The tensors of a file, and its label, once all of it has been checked.

    Args:
        file: what to read.
        wanted: what it must be, but for round and checksum.

    Raises:
        UnfitError: the file is corrupt, of another version, or somebody else's.
        OSError: it cannot be read.
    """
    tensors, label = unseal(file.read_bytes())
    label.check(wanted)
    return tensors, label


def write(file: Path, tensors: Mapping[str, Tensor], label: Label, since: str = "", durable: bool = True) -> Label:
    """Put a state in a file's place. Whatever happens, the old file or the new one is there and whole.

    Args:
        file: where; its folder is made if need be.
        tensors: the state.
        label: what it is; its checksum is not read.
        since: checksum of the file that was there when the writer began, empty for none.
        durable: lock out other processes, and come back when the disk has it. Without that a crash of the machine, but
            not of the process, can lose the file.

    Returns:
        The label with the file's checksum.

    Raises:
        UserError: another process has since written the state of a later round, which stays.
        UnfitError: a file has come since that is not this client's state.
        OSError, SafetensorError, NotImplementedError: it cannot be written.
    """
    private_folder(file.parent)
    raw, label = seal(tensors, label)
    if not durable:
        _replace(file, raw, durable)
        return label
    with locked(file):
        _remove_leftovers(file)
        _refuse_if_later(file, label, since)
        _replace(file, raw, durable)
    return label


def private_folder(folder: Path) -> None:
    """Make a folder, and those above it that are missing, for their owner alone.

    Raises:
        OSError: it cannot be made.
    """
    missing = []
    while not folder.is_dir():
        missing.append(folder)
        folder = folder.parent
    for made in reversed(missing):
        with contextlib.suppress(FileExistsError):
            made.mkdir(mode=0o700)
        _sync_names(made.parent)


@contextlib.contextmanager
def locked(file: Path) -> Iterator[None]:
    """Hold the lock of a client's file.

    Raises:
        OSError, NotImplementedError: it cannot be had.
    """
    with FileLock(str(file.with_name(f".{file.name}.lock")), timeout=LOCK_TIMEOUT, mode=0o600):
        yield


def set_aside(file: Path, why: str) -> Path:
    """Give a file another name in its folder, one that nothing has, and return it.

    Raises:
        OSError: it cannot be renamed.
    """
    number = 1
    while os.path.lexists(other := _aside(file, why, number)):
        number += 1
    file.rename(other)
    return other


def found_aside(file: Path) -> tuple[Path, ...]:
    """Files that were set aside here and may hold what this client had learned, the last of each kind.

    By their names, without a look at the whole folder, which thousands of clients of a simulation share.
    """
    found = []
    for why in OWN:
        number = 1
        while os.path.lexists(_aside(file, why, number)):
            number += 1
        if number > 1:
            found.append(_aside(file, why, number - 1))
    return tuple(found)


def _aside(file: Path, why: str, number: int) -> Path:
    return file.with_name(f"{file.name}.{why}-{number}")


def _refuse_if_later(file: Path, label: Label, since: str) -> None:
    """Let the later round win, but only against a file that has come since the writer began.

    A server that went back to an earlier checkpoint asks for an earlier round than that of the file which is there:
    that file was there when the writer began, and is replaced.
    """
    there = peek(file)
    if there is None or (there and there == since):
        return
    _, found = read(file, label)
    if found.round > label.round:
        raise UserError(
            f"the personal state of client {label.client} that round {label.round} made is not kept: another process "
            f"of this client has meanwhile written that of round {found.round} to {file}"
        )


def _replace(file: Path, raw: bytes, durable: bool) -> None:
    part = file.with_name(f".{file.name}.{os.getpid()}-{secrets.token_hex(4)}.part")
    try:
        # Nobody else may read it at any moment, the first included: open() would leave that to a chmod.
        with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as target:
            target.write(raw)
            target.flush()
            if durable:
                os.fsync(target.fileno())
        part.replace(file)
    finally:
        with contextlib.suppress(OSError):
            part.unlink()
    if durable:
        _sync_names(file.parent)


def _remove_leftovers(file: Path) -> None:
    """Remove what killed processes of this client had begun: whoever holds the lock is the only one that writes."""
    ours = re.compile(rf"\.{re.escape(file.name)}\.\d+-[0-9a-f]{{8}}\.part")
    for found in os.listdir(file.parent):
        if ours.fullmatch(found):
            with contextlib.suppress(FileNotFoundError):
                file.with_name(found).unlink()


def _sync_names(folder: Path) -> None:
    """Make the names in a folder last, where the file system can."""
    try:
        sync(folder)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
