"""Arrays that lie in a file without a name: it is gone when the process ends, however that comes about.

Pages of such an array that were looked at count as the process's memory until they are let go of, by `release`; what
was written to them is in the file all the same.
"""

from __future__ import annotations

import mmap
import os
import tempfile
from pathlib import Path
from weakref import WeakSet, finalize

import numpy as np
import torch
from torch import Tensor

CHUNK = 1 << 24
"""Bytes that are written at a time where a system cannot reserve them."""
_THERE: WeakSet[MappedRows] = WeakSet()


class MappedRows:
    """An array [N, P] in a file, to which rows can be added.

    Args:
        folder: where the file is made; it has no name there.
        width: P, above 0.
        dtype: of the numbers.

    Raises:
        OSError: no file can be made.
    """

    def __init__(self, folder: Path, width: int, dtype: torch.dtype) -> None:
        self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115
        finalize(self, self._file.close)  # what is still looked at by then stays until it is not
        self._width, self._dtype = width, dtype
        self._map: mmap.mmap | None = None
        self._first = 0  # address
        _THERE.add(self)

    def grow(self, rows: int) -> Tensor:
        """The array with more rows than before, which are 0: [rows, P]. The file grows, and nothing in it is copied.

        Args:
            rows: at least 1. Views of the array as it was before show the same file.

        Raises:
            OSError: the disk is full. Nothing has changed.
        """
        size = rows * self._width * self._dtype.itemsize
        # The disk must give the space now: to write to a map that has none is no error but the end of the process.
        self._reserve(size)
        self._map = mmap.mmap(self._file.fileno(), size)
        given = torch.from_numpy(np.frombuffer(self._map, dtype=np.uint8)).view(self._dtype).view(rows, self._width)
        self._first = given.data_ptr()
        return given

    def _reserve(self, size: int) -> None:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(self._file.fileno(), 0, size)
            return
        for place in range(self._file.seek(0, os.SEEK_END), size, CHUNK):
            self._file.write(bytes(min(CHUNK, size - place)))
        self._file.flush()

    def covers(self, address: int) -> bool:
        """Whether an address lies in the array."""
        return self._map is not None and self._first <= address < self._first + len(self._map)

    def release(self) -> None:
        """Let go of the pages that are in memory; the file keeps what was written."""
        if self._map is not None and hasattr(mmap, "MADV_DONTNEED"):
            self._map.madvise(mmap.MADV_DONTNEED)


def release(tensor: Tensor) -> None:
    """Let go of the pages of the array that a tensor is a view of, if that lies in a file; else nothing."""
    for rows in list(_THERE):
        if rows.covers(tensor.data_ptr()):
            rows.release()
