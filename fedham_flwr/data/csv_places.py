"""Where in which file a row of a data set stands.

A data set that is read of .csv files carries their names and lengths in its description, which stays with it when
columns are selected. Lines are counted when they are asked for, by reading the file again.
"""

from __future__ import annotations

import contextlib
import csv
import gzip
import io
import json
import os
import sys
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import datasets


class Dialect(NamedTuple):
    """How a file is written.

    Attributes:
        file: its path.
        encoding: a name that Python knows.
        separator: between fields.
    """

    file: str
    encoding: str
    separator: str


class Line(NamedTuple):
    """A row of a file, or its header.

    Attributes:
        fields: as written.
        line: that it begins in, from 1.
        end: the line that it ends in; a field in quotes may have line breaks.
    """

    fields: list[str]
    line: int
    end: int


def opened(file: str) -> IO[bytes]:
    """A file in binary, without its compression."""
    return gzip.open(file) if file.lower().endswith(".gz") else Path(file).open("rb")  # type: ignore[return-value]


def lines(dialect: Dialect, strict: bool = False) -> Iterator[Line]:
    """The header and the rows of a file, without empty lines.

    Args:
        dialect: of the file.
        strict: whether a quote that isn't closed is an error.

    Raises:
        UnicodeError: it is written in another encoding.
        csv.Error: with `strict`.
    """
    limit = csv.field_size_limit(sys.maxsize)
    try:
        with io.TextIOWrapper(opened(dialect.file), dialect.encoding, newline="") as text:
            reader, before, width = csv.reader(text, delimiter=dialect.separator, strict=strict), 0, 0
            for fields in reader:
                if fields and (width == 1 or len(fields) > 1 or fields[0].strip()):
                    yield Line(fields, before + 1, reader.line_num)
                    width = width or len(fields)
                before = reader.line_num
    finally:
        csv.field_size_limit(limit)


# ---- rows of a data set ----------------------------------------------------------------------------------------------


def described(root: Path, dialects: Sequence[Dialect], rows: Sequence[int]) -> str:
    """What a data set carries in its description.

    Args:
        root: what the files are named by.
        dialects: of each file.
        rows: of each file.
    """
    return json.dumps({"root": str(root), "files": dialects, "rows": list(rows), "kept": None})


def _carried(data: datasets.Dataset) -> dict[str, Any]:
    """What `described` wrote; nothing of a data set that was read of something else."""
    text = data.info.description or ""
    return dict(json.loads(text)) if text.startswith('{"root": ') else {}


def spans(data: datasets.Dataset) -> list[tuple[int, int, str]]:
    """Of each .csv file that a data set was read of, its first row, the one after its last, and its separator."""
    carried = _carried(data)
    ends = np.cumsum(carried.get("rows", []))
    if carried and carried["kept"] is not None:
        ends = np.searchsorted(carried["kept"], ends)
    starts = [0, *ends.tolist()]
    return [
        (*ab, Dialect(*file).separator) for ab, file in zip(pairwise(starts), carried.get("files", []), strict=True)
    ]


def files_of(data: datasets.Dataset) -> list[tuple[str, int]]:
    """The .csv files that a data set was read of, by their path below what was asked for, and the rows of each."""
    carried = _carried(data)
    names = [_named(carried["root"], Dialect(*file).file) for file in carried.get("files", [])]
    return list(zip(names, carried.get("rows", []), strict=True))


def joined(parts: Sequence[datasets.Dataset]) -> datasets.Dataset:
    """The rows of several data sets, which go on knowing their lines if all do.

    Args:
        parts: with the same columns.
    """
    import datasets

    carried, whole = [_carried(part) for part in parts], datasets.concatenate_datasets(list(parts))
    whole.info.description = ""
    if all(each and each["kept"] is None for each in carried):
        root = os.path.commonpath([os.path.dirname(file[0]) for each in carried for file in each["files"]])
        files = [Dialect(*file) for each in carried for file in each["files"]]
        whole.info.description = described(Path(root), files, [count for each in carried for count in each["rows"]])
    return whole


def selected(data: datasets.Dataset, kept: npt.NDArray[np.int64]) -> datasets.Dataset:
    """Some rows of a data set, which go on knowing their lines.

    Args:
        data: all rows.
        kept: their numbers, ascending.
    """
    carried, chosen = _carried(data), data.select(kept)
    if carried:
        before = carried["kept"]
        carried["kept"] = (kept if before is None else np.array(before)[kept]).tolist()
        chosen.info.description = json.dumps(carried)
    return chosen


def place(data: datasets.Dataset, row: int) -> str:
    """Where a row stands: `north.csv, line 14`, or `row 12` of a data set that was read of something else."""
    carried = _carried(data)
    if not carried:
        return f"row {row}"
    row = row if carried["kept"] is None else carried["kept"][row]
    ends = np.cumsum(carried["rows"])
    number = int(np.searchsorted(ends, row, side="right"))
    dialect = Dialect(*carried["files"][number])
    within = row - int(ends[number]) + carried["rows"][number]
    name = _named(carried["root"], dialect.file)
    with contextlib.suppress(OSError, UnicodeError, csv.Error):
        for at, line in enumerate(lines(dialect)):
            if at == within + 1:  # the first is the header
                return f"{name}, line {line.line}"
    return f"{name}, row {within}"


def _named(root: str, file: str) -> str:
    return Path(file).name if root == file else Path(os.path.relpath(file, root)).as_posix()
