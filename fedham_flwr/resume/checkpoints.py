"""Checkpoints: what lets a run that was interrupted go on as if it had not been.

Every `checkpoint-every` rounds, and after the last one, a run writes `<run>/checkpoints/round-00010/` with

    checkpoint.json               the round, who takes part, how far the results were, and a SHA-256 of each other file
    server.safetensors            the server's state
    clients/<client>.safetensors  in a simulation, each client's personal state (real nodes keep their own)

A checkpoint gets its name when all of it is on the disk, so one that is half written is never read; two are kept. What
is the same as in the one before is not written again: it is the same file under another name (a hard link), or a copy
where the file system has none. `<run>/server.safetensors` is such a name too if nothing has changed since the last one.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from fedham_flwr.core.errors import UserError
from fedham_flwr.core.files import holds, link, replacing, sync, write_tensors
from fedham_flwr.core.parameters import Params
from fedham_flwr.federation.progress import RunProgress

log = logging.getLogger("fedham_flwr")

FOLDER, META, SERVER, CLIENTS = "checkpoints", "checkpoint.json", "server.safetensors", "clients"
SCHEMA = 1
"""Of `checkpoint.json`; to be raised when an older program could not go on from it."""
KEPT = 2
IN_FILE = 1 << 26
"""Bytes beyond which a tensor that is read is left in its file, rather than being in memory twice."""


@dataclass(frozen=True)
class Checkpoint:
    """Where a run was.

    Attributes:
        round: the last that is done.
        training: name under which clients keep their personal state.
        strategy: the method.
        model: name of the network.
        clients: those that had answered by then.
        trained: those whose upload has been merged.
        stateless: those that said that they had lost their state, and have not trained since.
        novel: those that are held out.
        exchanges: lines of rounds.jsonl by then.
        resumed: rounds that the run has been continued from.
    """

    round: int
    training: str
    strategy: str
    model: str
    clients: tuple[str, ...]
    trained: tuple[str, ...]
    stateless: tuple[str, ...]
    novel: tuple[str, ...]
    exchanges: int
    resumed: tuple[int, ...] = ()

    def progress(self) -> RunProgress:
        """How far the run was."""
        return RunProgress(self.round, set(self.trained), set(self.stateless), self.novel)


def save(run: Path, checkpoint: Checkpoint, state: Mapping[str, torch.Tensor], kept: Path | None = None) -> Path:
    """Write a checkpoint, then remove all but the last two.

    Args:
        run: the run's directory.
        checkpoint: where it is.
        state: the server's.
        kept: folder with the clients' personal states; None where they keep them themselves. Its files are linked, not
            copied: clients replace a file and never change one.

    Returns:
        The checkpoint's folder.

    Raises:
        OSError: it cannot be written; the earlier ones are still there.
    """
    top = run / FOLDER
    folder = top / f"round-{checkpoint.round:05d}"
    partial = top / f".{folder.name}.partial"
    before = _before(run)
    shutil.rmtree(partial, ignore_errors=True)
    (partial / CLIENTS).mkdir(parents=True)
    try:
        label = {"strategy": checkpoint.strategy, "model": checkpoint.model}
        files = [write_state(partial / SERVER, state, label, run)]
        for file in sorted(kept.glob("*.safetensors")) if kept is not None else ():
            files.append(partial / CLIENTS / file.name)
            link(file, files[-1])
        digests, new = {}, []
        for file in files:
            name = file.relative_to(partial).as_posix()
            old, digest = before.get(name, (file, ""))
            if not digest or not _same(old, file):
                digest = _digest(file)
                new.append(file)
            digests[name] = digest
        meta = {"schema": SCHEMA, **asdict(checkpoint), "files": digests}
        (partial / META).write_text(json.dumps(meta, indent=2) + "\n", encoding="utf-8")
        for path in (*new, partial / META, partial / CLIENTS, partial):
            sync(path)
        shutil.rmtree(folder, ignore_errors=True)  # of a run that was continued from before it
        partial.rename(folder)
        sync(top)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    for old in _folders(run)[:-KEPT]:
        shutil.rmtree(old, ignore_errors=True)
    return folder


def write_state(path: Path, state: Mapping[str, torch.Tensor], label: Mapping[str, str], run: Path) -> Path:
    """Write the server's state, or name the file of the run's last checkpoint if that holds the same; return the path.

    Args:
        path: the file's name; one that is there is replaced.
        state: the server's.
        label: stored in the file's header.
        run: the run's directory.

    Raises:
        OSError: it cannot be written; what was there before is there still.
    """
    folders = _folders(run)
    if not folders or not holds(folders[-1] / SERVER, state, label):
        return write_tensors(path, state, label)
    with replacing(path) as part:
        link(folders[-1] / SERVER, part)
    return path


def newest(run: Path) -> tuple[Checkpoint, Path]:
    """The last whole checkpoint of a run, and its folder; one that is damaged is passed over with a warning.

    Raises:
        UserError: there is none.
    """
    damaged = []
    for folder in reversed(_folders(run)):
        try:
            return read(folder), folder
        except (OSError, ValueError, TypeError, KeyError) as error:
            damaged.append(f"{folder.name}: {error}")
            log.warning("the checkpoint %s is damaged (%s); the one before it is looked for", folder, error)
    found = f"all of its checkpoints are damaged ({'; '.join(damaged)})" if damaged else "it has no checkpoint"
    raise UserError(
        f"resume={run}: {found}, so there is nothing to go on from; a run writes one every checkpoint-every rounds"
    )


def read(folder: Path) -> Checkpoint:
    """What a checkpoint says, every file of it checked.

    Raises:
        OSError, ValueError, TypeError, KeyError: it is not whole, or of another schema.
    """
    meta: dict[str, Any] = json.loads((folder / META).read_text(encoding="utf-8"))
    if meta["schema"] != SCHEMA:
        raise ValueError(f"it has the schema {meta['schema']}, and this version reads {SCHEMA}")
    for name, digest in meta["files"].items():
        if _digest(folder / name) != digest:
            raise ValueError(f"{name} is not what was written")
    given: dict[str, Any] = {field.name: meta[field.name] for field in fields(Checkpoint)}
    lists: dict[str, Any] = {name: tuple(value) for name, value in given.items() if isinstance(value, list)}
    return Checkpoint(**{**given, **lists})


def read_state(folder: Path) -> Params:
    """The server's state. Large tensors lie in the file and come into memory as they are looked at.

    The file has to stay as it is, as that of a checkpoint does; it may be removed. To write to the tensors changes
    nothing in it.
    """
    return {n: t if t.nbytes > IN_FILE else t.clone() for n, t in load_file(folder / SERVER).items()}


def restore_clients(folder: Path, kept: Path) -> None:
    """Put the clients' personal states of a checkpoint, and no others, where the clients of a simulation look for them.

    Args:
        folder: the checkpoint's.
        kept: is emptied first.
    """
    shutil.rmtree(kept, ignore_errors=True)
    kept.mkdir(mode=0o700)
    for file in (folder / CLIENTS).glob("*.safetensors"):
        link(file, kept / file.name)


def _folders(run: Path) -> list[Path]:
    """A run's checkpoints, the oldest first; those that are being written have another name."""
    return sorted((run / FOLDER).glob("round-*"), key=lambda folder: int(folder.name.removeprefix("round-")))


def _before(run: Path) -> dict[str, tuple[Path, str]]:
    """The files of the last checkpoint by name, with their digests; none if that cannot be told."""
    try:
        folder = _folders(run)[-1]
        files = json.loads((folder / META).read_text(encoding="utf-8"))["files"]
        return {str(name): (folder / name, str(digest)) for name, digest in files.items()}
    except (OSError, ValueError, TypeError, KeyError, IndexError, AttributeError):
        return {}


def _same(one: Path, other: Path) -> bool:
    """Whether two names are of one file."""
    try:
        return one.samefile(other)
    except OSError:
        return False


def _digest(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
