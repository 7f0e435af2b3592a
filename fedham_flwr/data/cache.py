"""The cache of decoded data: folders that are filled once per machine, and the arrays in them.

A folder's name has a key, a digest of content and settings, so nothing in it goes stale. All processes of a machine map
the same pages, and opening a client costs milliseconds: a client process may live for one message only. A folder that
is damaged is set aside and made anew: see `cache_files`.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from filelock import FileLock

from fedham_flwr.core.errors import UserError
from fedham_flwr.data.cache_files import fault, identity, is_checked, mend, note_checked, write_list

_FORMAT = 2  # of the cache; to be raised whenever decoding, dealing or splitting gives another result


def build(folder: Path, fill: Callable[[Path], None]) -> Path:
    """Have the folder filled, once, whoever asks and however many at a time; anew if it is damaged."""
    if is_checked(folder):
        return folder
    try:
        with FileLock(f"{folder}.lock"):
            if mend(folder):
                _fill_and_rename(folder, fill)
                note_checked(folder)
    except OSError as error:
        if not fault(folder, whole=True):  # in a cache that can only be read
            return folder
        raise unwritable(folder.parent, error) from error
    return folder


def _fill_and_rename(folder: Path, fill: Callable[[Path], None]) -> None:
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)  # left by a process that was killed: the lock is ours now
    partial.mkdir()
    try:
        fill(partial)
        write_list(partial)
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def unwritable(folder: Path, error: OSError) -> UserError:
    """What a user is told of a cache folder that the system refuses to write."""
    reason = error.strerror or str(error)
    return UserError(f"the cache folder {folder} can't be written ({reason}); set cache-dir to a folder that can.")


def cache_root(cache_dir: str) -> Path:
    """The folder of the cache: the setting `cache-dir`, or by default one in the user's cache folder."""
    if cache_dir:
        return Path(os.path.abspath(Path(cache_dir).expanduser()))
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fedham-flwr"


def key_of(*parts: Any) -> str:
    """16 hexadecimal digits that differ for different settings."""
    return hashlib.sha256(json.dumps([_FORMAT, *parts], sort_keys=True).encode()).hexdigest()[:16]


def array(path: Path) -> npt.NDArray[Any]:
    """An array of the cache, mapped once per process. Copy-on-write, since torch warns of arrays that are read-only."""
    return _array(path, identity(path))


@lru_cache(maxsize=64)
def _array(path: Path, _: tuple[int, int, int]) -> npt.NDArray[Any]:
    array: npt.NDArray[Any] = np.load(path, mmap_mode="c", allow_pickle=False)
    return array


def meta_of(folder: Path) -> dict[str, Any]:
    """What the `meta.json` of a folder of the cache says, read once per process."""
    return _meta(folder, identity(folder / "meta.json"))


@lru_cache(maxsize=64)
def _meta(folder: Path, _: tuple[int, int, int]) -> dict[str, Any]:
    return dict(json.loads((folder / "meta.json").read_text()))
