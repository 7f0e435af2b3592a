"""Arrays to which rows are added: in memory, and beyond a limit in files without a name (see core/mapped.py)."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from fedham_flwr.core.errors import UserError
from fedham_flwr.core.mapped import MappedRows, release
from fedham_flwr.core.parameters import empty

log = logging.getLogger("fedham_flwr")

BLOCK = 1 << 26
"""Bytes of a file that are in memory at a time."""


@dataclass(frozen=True)
class Storage:
    """Where arrays may lie: in memory, and beyond a limit in files.

    Attributes:
        folder: where the files would be; None for memory alone.
        most: bytes in memory.
    """

    folder: Path | None = None
    most: float = math.inf


class Arrays:
    """Arrays with a row for each client.

    Args:
        none: name -> [0, P], of the type and on the device that is wanted.
        storage: where they may be; a file is for arrays on a processor.

    Attributes:
        of: name -> [N, P].
        on_disk: whether they lie in files.
    """

    def __init__(self, none: Mapping[str, Tensor], storage: Storage) -> None:
        self.of = dict(none)
        self.on_disk = False
        on_processor = all(array.device.type == "cpu" for array in none.values())
        self._storage = storage if on_processor else Storage()
        self._room = dict(none)  # with rows for clients to come
        self._files: dict[str, MappedRows] = {}

    def grow(self, rows: int) -> None:
        """Have so many rows, of which the new ones hold anything.

        Raises:
            UserError: that is too much for memory, and the disk is full.
        """
        size = rows * sum(array.shape[1] * array.element_size() for array in self.of.values())
        folder = self._storage.folder
        if folder is not None and size > self._storage.most:
            try:
                self._grow_files(rows, folder)
            except OSError as error:
                raise UserError(
                    f"the models of {rows} clients take {size / 1e9:.3g} GB, more than "
                    f"bank-memory={self._storage.most / 1e9:g}, and cannot be in a file in {folder} "
                    f"({error.strerror or error}): wanted a results-dir with more room, or more bank-memory"
                ) from error
            if not self.on_disk:
                log.info("the models of %d clients, %.3g GB, lie in a file in %s", rows, size / 1e9, folder)
            self.on_disk, self._room = True, {}
            return
        for name, old in self.of.items():
            if rows > len(self._room[name]):
                # A quarter more than there was, so that clients who come one by one do not cost a copy each.
                room = empty((max(rows, len(old) * 5 // 4), old.shape[1]), old)
                room[: len(old)] = old
                self._room[name] = room
            self.of[name] = self._room[name][:rows]

    def _grow_files(self, rows: int, folder: Path) -> None:
        for name, old in self.of.items():
            if name in self._files:
                self.of[name] = self._files[name].grow(rows)
                continue
            file = MappedRows(folder, old.shape[1], old.dtype)
            new = file.grow(rows)
            fill(new[: len(old)], old)
            self._files[name], self.of[name] = file, new

    def release(self) -> None:
        """Let go of what is in memory of files."""
        for array in self.of.values():
            release(array)


def fill(array: Tensor, row: Tensor) -> None:
    """Put one model in every row, or models in the rows.

    Args:
        array: [N, P].
        row: [P], or [N, P].
    """
    for some in blocks(len(array), array):
        array[some] = row if row.dim() == 1 else row[some]
        release(array)


def blocks(rows: int, array: Tensor) -> list[slice]:
    """Cuts of so many rows into blocks."""
    most = max(1, BLOCK // max(1, array.shape[1] * array.element_size()))
    return [slice(a, min(a + most, rows)) for a in range(0, rows, most)]
