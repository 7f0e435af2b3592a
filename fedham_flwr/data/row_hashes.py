"""A number for each row of a source that says what is in it, so that what becomes of a row depends on the row alone.

The number is of the row's values as they were in the source: 85, 85.0 and the text "85" are one value, so that a column
whose type gets wider with more rows gives the same numbers, and neither the order of the columns nor columns that are
not used matter. Equal rows have equal numbers.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from fedham_flwr.core.seeding import derive
from fedham_flwr.data.columns import kind_of_column

if TYPE_CHECKING:
    import datasets

Hashes = npt.NDArray[np.uint64]

FILE = "row-hashes.npy"
"""In a data set's folder of the cache: uint64 [N]."""
RECORDINGS = "recordings.npy"
"""Of windows of recordings: uint64 [N], a number for the name of the recording that each one is of."""
_NUMBER = r"^[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?$"
_ROWS = 1 << 14  # hashed at a time


def row_hashes(data: datasets.Dataset, names: Sequence[str]) -> Hashes:
    """The numbers of all rows, uint64 [N].

    Args:
        data: all rows.
        names: of the columns that are used: features and labels.
    """
    total = np.zeros(len(data), dtype=np.uint64)
    images = [name for name in names if kind_of_column(data.features[name]) == "Image"]
    others = [name for name in names if name not in images]
    table = data.select_columns(others).with_format("arrow")[:] if others else None
    for name in names:
        cells = _each(_image_bytes(data, name), len(data)) if name in images else _cells(table, name, data.features)
        # A sum, so that the order of the columns does not matter; each is mixed with its name before.
        total += mixed(cells + np.uint64(_digest(name.strip().lower().encode())))
    return total


def write(data: datasets.Dataset, names: Sequence[str], folder: Path) -> None:
    """Write the numbers of the rows that a folder of the cache has samples of, where it has one of each row.

    Args:
        data: all rows.
        names: as for `row_hashes`.
        folder: has `labels.npy`, if its samples are rows.
    """
    labels = folder / "labels.npy"
    if labels.is_file() and len(np.load(labels, mmap_mode="r")) == len(data):
        np.save(folder / FILE, row_hashes(data, names))


def array_hashes(folder: Path) -> Hashes:
    """As `row_hashes`, of the decoded features and labels of a folder of the cache that has no `FILE`."""
    total = np.zeros(len(np.load(folder / "labels.npy", mmap_mode="r")), dtype=np.uint64)
    for file in ("features.npy", "labels.npy"):
        array = np.load(folder / file, mmap_mode="r")
        for start in range(0, len(array), _ROWS):
            rows = np.ascontiguousarray(array[start : start + _ROWS]).reshape(len(array[start : start + _ROWS]), -1)
            raw = rows.view(np.uint8)
            words = np.zeros((len(raw), -(-raw.shape[1] // 8) * 8), dtype=np.uint8)
            words[:, : raw.shape[1]] = raw
            whole = words.view(np.uint64)
            places = mixed(np.arange(1, whole.shape[1] + 1, dtype=np.uint64) + np.uint64(_digest(file.encode())))
            total[start : start + len(whole)] += mixed(whole ^ places).sum(axis=1, dtype=np.uint64)
    return total


def hashes_of(folder: Path) -> Hashes:
    """The numbers of the rows of a data set's folder of the cache."""
    file = folder / FILE
    return np.load(file, allow_pickle=False) if file.is_file() else array_hashes(folder)


def text_hashes(given: Sequence[str]) -> Hashes:
    """A number for each text, uint64 [n]."""
    return _each((text.encode() for text in given), len(given))


def shares(hashes: Hashes, seed: int, purpose: str) -> npt.NDArray[np.float64]:
    """A number in [0, 1) for each row, uniform over different rows, another one for each seed and purpose.

    Args:
        hashes: uint64 [N].
        seed: of the data.
        purpose: as for `seeding.stream`.
    """
    keyed = mixed(hashes ^ np.uint64(derive(seed, purpose)))
    return (keyed >> np.uint64(11)).astype(np.float64) / 2.0**53


def mixed(values: Hashes) -> Hashes:
    """A bijection of 64-bit numbers that leaves no trace of their order (Steele et al., SplitMix, OOPSLA 2014)."""
    with np.errstate(over="ignore"):
        values = values + np.uint64(0x9E3779B97F4A7C15)
        values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


# ---- the cells of a column -------------------------------------------------------------------------------------------


def _cells(table: Any, name: str, features: Any) -> Hashes:
    """The numbers of the values of a column of an Arrow table."""
    import pyarrow as pa

    feature, column = features[name], table.column(name).combine_chunks()
    kind = column.type
    if kind_of_column(feature) == "ClassLabel":
        known = pa.array([*feature.names, None], pa.string())
        return _texts(known.take(pa.array([len(known) - 1 if i is None or i < 0 else i for i in column.to_pylist()])))
    if pa.types.is_boolean(kind) or pa.types.is_temporal(kind) or pa.types.is_dictionary(kind):
        return _texts(column.cast(pa.string()))
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return _texts(column.cast(pa.large_string()))
    if pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_null(kind):
        return _numbers(column)
    return _each((_nested(value) for value in column.to_pylist()), len(column))


def _numbers(column: Any) -> Hashes:
    """Of numbers: of their value as a 64-bit float; missing and NaN are the same."""
    import pyarrow as pa
    import pyarrow.compute as pc

    values = pc.fill_null(pc.cast(column, pa.float64(), safe=False), float("nan")).to_numpy(zero_copy_only=False)
    values = np.where(np.isnan(values), np.nan, values + 0.0)  # one NaN of many, and no negative zero
    return mixed(np.ascontiguousarray(values).view(np.uint64))


def _texts(column: Any) -> Hashes:
    """Of texts, without the blanks around them, and in lower case; one that is a number is that number."""
    import pyarrow as pa
    import pyarrow.compute as pc

    stripped = pc.utf8_lower(pc.utf8_trim_whitespace(column))
    stripped = pc.if_else(pc.equal(stripped, ""), None, stripped)
    numeric = pc.fill_null(pc.match_substring_regex(stripped, _NUMBER), False)
    numbers = _numbers(pc.if_else(numeric, stripped, None).cast(pa.float64()))
    different = pc.dictionary_encode(stripped)
    digests = np.array([_digest(text.encode()) for text in different.dictionary.to_pylist()], dtype=np.uint64)
    places = pc.fill_null(different.indices, -1).to_numpy(zero_copy_only=False)
    words = digests[places] if len(digests) else numbers  # of a missing one any, since it counts as a number
    is_number = numeric.to_numpy(zero_copy_only=False) | (places < 0)
    return np.where(is_number, numbers, mixed(words))


def _nested(value: Any) -> bytes:
    """Of a list: its numbers as 64-bit floats, where it has nothing else."""
    try:
        return np.asarray(value, dtype=np.float64).tobytes()
    except (TypeError, ValueError):
        return repr(value).encode()


def _image_bytes(data: datasets.Dataset, name: str) -> Iterator[bytes]:
    """The files of images, as they are."""
    import datasets

    for row in data.select_columns([name]).cast_column(name, datasets.Image(decode=False)):
        given = row[name] or {}
        yield given.get("bytes") or (Path(given["path"]).read_bytes() if given.get("path") else b"")


def _each(pieces: Iterator[bytes], count: int) -> Hashes:
    return mixed(np.fromiter(map(_digest, pieces), dtype=np.uint64, count=count))


def _digest(raw: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(raw, digest_size=8).digest(), "little")
