"""Where data comes from: `digits`, a local folder or file, or the Hugging Face Hub, decoded into plain arrays.

A source is decoded once into a folder of `features.npy` (uint8 [N, H, W, C]), `labels.npy` (int64 [N]), `owners.npy`
(int64 [N], with a client column only) and `meta.json`. The official splits of a data set are merged, train first.
`datasets`, scikit-learn and Pillow are imported by the functions that decode, not by those that recognise a source.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import re
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from fedham_flwr.errors import UserError

if TYPE_CHECKING:
    import datasets

BLOCK = 1000
"""Rows decoded at a time: all the memory that decoding takes."""
_BUILDERS = {".parquet": "parquet", ".csv": "csv", ".json": "json", ".jsonl": "json", ".arrow": "arrow"}
_SPLIT_ORDER = {"train": 0, "validation": 1, "test": 2}
_SIMPLE = re.compile(r"u?int\d+|bool|(large_)?string")

Blocks = Iterator[npt.NDArray[np.uint8]]


@dataclass(frozen=True)
class Columns:
    """The columns asked for by name; empty: found by their type (client: none)."""

    feature: str = ""
    label: str = ""
    client: str = ""


def local_path(source: str) -> Path | None:
    """The absolute path of a local source, or None for `digits` and for what looks like a name on the Hub.

    Raises:
        UserError: it looks like a path, but nothing is there.
    """
    if source == "digits":
        return None
    path = Path(os.path.abspath(Path(source).expanduser()))
    if path.exists():
        return path
    if re.fullmatch(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?", source):
        return None
    raise UserError(
        f"dataset is '{source}', but there is no file or folder {path}; give a path, a name on the Hub, or 'digits'."
    )


def content_key(source: str, memo: Path) -> str:
    """A text that changes whenever the content of the source does (for the Hub: its name).

    Args:
        source: the `dataset` setting.
        memo: a JSON file that remembers the digests of local files by path, size and time of change.
    """
    path = local_path(source)
    if path is not None:
        return _digest(path, memo)
    if source == "digits":
        return f"digits:{importlib.metadata.version('scikit-learn')}"
    return f"hub:{source}"


def _digest(path: Path, memo: Path) -> str:
    """SHA-256 over the names and bytes of a folder's files, or over one file; from the memo if nothing was touched."""
    files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file() and not _hidden(p, path))
    stats = [(file.relative_to(path).as_posix(), file.stat()) for file in files]
    touched = _sha256(json.dumps([(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats]).encode())
    known = _read_memo(memo)
    if known.get(str(path), ("", ""))[0] != touched:
        total = hashlib.sha256()
        for (name, _), file in zip(stats, files, strict=True):
            with file.open("rb") as opened:
                total.update(f"{name}\0{hashlib.file_digest(opened, 'sha256').hexdigest()}\0".encode())
        known[str(path)] = (touched, total.hexdigest())
        partial = memo.with_name(f"{memo.name}.{os.getpid()}")
        partial.write_text(json.dumps(known))
        partial.replace(memo)
    return f"local:{known[str(path)][1]}"


def _hidden(file: Path, root: Path) -> bool:
    return any(part.startswith(".") for part in file.relative_to(root).parts)


def _read_memo(memo: Path) -> dict[str, tuple[str, str]]:
    """The memo, or an empty one: losing it costs a second, no more."""
    try:
        return dict(json.loads(memo.read_text()))
    except (OSError, ValueError):
        return {}


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def decode(source: str, columns: Columns, folder: Path) -> None:
    """Write the arrays and the meta data of a source into this folder, which exists and is empty.

    Raises:
        UserError: the source can't be read or reached, or its columns aren't what is needed.
        OSError: the folder can't be written.
    """
    if source == "digits":
        _decode_digits(columns, folder)
        return
    path = local_path(source)
    # The library writes a copy of the files it reads; of a local source it isn't needed for longer than decoding takes.
    with tempfile.TemporaryDirectory(dir=folder) as copy:
        splits = _load_hub(source) if path is None else _load_local(path, copy)
        _decode_table(_merge(splits, source), columns, folder)


def _decode_table(data: datasets.Dataset, columns: Columns, folder: Path) -> None:
    feature, label = _find_feature(data, columns.feature), _find_label(data, columns.label)
    labels, classes = _label_codes(data, label)
    np.save(folder / "labels.npy", labels)
    meta: dict[str, Any] = {"classes": classes, "kind": "image"}
    if columns.client:
        owners, meta["owners"] = _codes(data, _named(data, "client-column", columns.client), "client-column")
        np.save(folder / "owners.npy", owners)
    _DECODERS[type(data.features[feature]).__name__](data, feature, folder / "features.npy")
    (folder / "meta.json").write_text(json.dumps(meta))


def _decode_digits(columns: Columns, folder: Path) -> None:
    """scikit-learn's 1797 hand-written digits, 8x8 grey, from 0..16 to 0..255."""
    from sklearn.datasets import load_digits

    for setting, wanted, actual in (("feature", columns.feature, "image"), ("label", columns.label, "label")):
        if wanted not in ("", actual):
            raise UserError(f"{setting}-column is '{wanted}', but the digits have only the columns image and label.")
    if columns.client:
        raise UserError(f"client-column is '{columns.client}', but the digits have only the columns image and label.")
    digits = load_digits()
    np.save(folder / "features.npy", np.rint(digits.images * (255 / 16)).astype(np.uint8)[..., None])
    np.save(folder / "labels.npy", digits.target.astype(np.int64))
    (folder / "meta.json").write_text(json.dumps({"classes": [str(i) for i in range(10)], "kind": "image"}))


# ---- reading -------------------------------------------------------------------------------------------------------


def _load_local(path: Path, copy: str) -> datasets.DatasetDict:
    import datasets

    builder = _BUILDERS.get(path.suffix.lower())
    if path.is_file() and builder is None:
        raise UserError(f"dataset is the file {path}, but only {', '.join(_BUILDERS)} files and folders can be read.")
    what = {"path": builder, "data_files": str(path)} if path.is_file() else {"path": str(path)}
    with _offline():
        try:
            return datasets.load_dataset(**what, cache_dir=copy)
        except Exception as error:  # the library and its readers raise errors of every kind for a file they can't read
            raise UserError(f"dataset {path} can't be read: {_first_line(error)}") from error


@contextmanager
def _offline() -> Iterator[None]:
    """Keep `datasets` off the network, and quiet, for the time of reading local files."""
    import datasets
    import huggingface_hub

    switches: tuple[Any, ...] = (datasets.config, huggingface_hub.constants)
    before = [module.HF_HUB_OFFLINE for module in switches]
    quiet = datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    for module in switches:
        module.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        for module, value in zip(switches, before, strict=True):
            module.HF_HUB_OFFLINE = value
        if not quiet:
            datasets.enable_progress_bars()


def _load_hub(name: str) -> datasets.DatasetDict:
    """The splits of a data set on the Hub; the library keeps its download, in its own cache."""
    import datasets
    from flwr_datasets import FederatedDataset

    def merge(splits: datasets.DatasetDict) -> datasets.DatasetDict:
        return datasets.DatasetDict({"train": _merge(splits, name)})

    try:
        merged = FederatedDataset(dataset=name, partitioners={}, preprocessor=merge, shuffle=False).load_split("train")
        return datasets.DatasetDict({"train": merged})
    except datasets.exceptions.DatasetNotFoundError as error:
        raise UserError(
            f"dataset is '{name}', but the Hub has no such data set (or it is private), and {Path(name).absolute()} "
            "doesn't exist; give an existing name or path, or 'digits'."
        ) from error
    except OSError as error:
        raise UserError(
            f"dataset is '{name}', but the Hugging Face Hub cannot be reached ({_first_line(error)}), and "
            f'{Path(name).absolute()} doesn\'t exist; a local folder or dataset="digits" works without network.'
        ) from error
    except (ValueError, RuntimeError) as error:
        raise UserError(f"dataset '{name}' can't be loaded from the Hub: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)


def _merge(splits: datasets.DatasetDict, source: str) -> datasets.Dataset:
    """All rows of all splits, those of train first."""
    import datasets

    order = sorted(splits, key=lambda name: _SPLIT_ORDER.get(name, 3))
    try:
        merged = datasets.concatenate_datasets([splits[name] for name in order])
    except ValueError as error:
        raise UserError(f"dataset '{source}' has splits of different columns: {_first_line(error)}") from error
    if not len(merged):
        raise UserError(f"dataset '{source}' has no rows.")
    return merged


# ---- columns -------------------------------------------------------------------------------------------------------


def _named(data: datasets.Dataset, setting: str, column: str) -> str:
    if column not in data.features:
        raise UserError(f"{setting} is '{column}', but the columns are {_listed(data)}.")
    return column


def _listed(data: datasets.Dataset) -> str:
    return ", ".join(f"{name} ({_kind(feature)})" for name, feature in data.features.items())


def _kind(feature: Any) -> str:
    name = type(feature).__name__
    return str(feature.dtype) if name == "Value" else name


def _find_feature(data: datasets.Dataset, column: str) -> str:
    """The column named by the setting, else the only image column."""
    if column:
        kind = _kind(data.features[_named(data, "feature-column", column)])
        if kind not in _DECODERS:
            raise UserError(
                f"feature-column '{column}' is of kind {kind}, but only {', '.join(_DECODERS)} is supported."
            )
        return column
    return _the_only("feature-column", "Image", data)


def _find_label(data: datasets.Dataset, column: str) -> str:
    """The column named by the setting, else the only class-label column, else the one called "label"."""
    if column:
        return _named(data, "label-column", column)
    if "ClassLabel" not in map(_kind, data.features.values()) and "label" in data.features:
        return "label"
    return _the_only("label-column", "ClassLabel", data)


def _the_only(setting: str, kind: str, data: datasets.Dataset) -> str:
    found = [name for name, feature in data.features.items() if _kind(feature) == kind]
    if len(found) != 1:
        raise UserError(f"set {setting}: the data set has {len(found)} columns of kind {kind}, among {_listed(data)}.")
    return str(found[0])


def _label_codes(data: datasets.Dataset, column: str) -> tuple[npt.NDArray[np.int64], list[str]]:
    """int64 [N] in 0..K-1, and the K names: those of a class-label column, else the sorted values."""
    if _kind(data.features[column]) != "ClassLabel":
        return _codes(data, column, "label-column")
    labels = _values(data, column, "label-column").astype(np.int64)
    if labels.min() < 0:
        raise UserError(f"label-column '{column}' has {int((labels < 0).sum())} rows without a label; leave them out.")
    return labels, list(data.features[column].names)


def _codes(data: datasets.Dataset, column: str, setting: str) -> tuple[npt.NDArray[np.int64], list[str]]:
    """int64 [N] in 0..K-1, and the K values, sorted, as text."""
    kind = _kind(data.features[column])
    if kind != "ClassLabel" and not _SIMPLE.fullmatch(kind):
        raise UserError(f"{setting} '{column}' is of kind {kind}, but must hold integers, texts or class labels.")
    values, codes = np.unique(_values(data, column, setting), return_inverse=True)
    names: list[str] = (
        data.features[column].int2str(values.tolist()) if kind == "ClassLabel" else [str(value) for value in values]
    )
    return codes.astype(np.int64), names


def _values(data: datasets.Dataset, column: str, setting: str) -> npt.NDArray[Any]:
    values = data.select_columns([column]).with_format("arrow")[:].column(column)
    if values.null_count:
        raise UserError(f"{setting} '{column}' has {values.null_count} empty rows, but every row needs a value.")
    found: npt.NDArray[Any] = values.to_numpy()
    return found


# ---- features: one decoder per kind of column, each writing features.npy ---------------------------------------------


def _decode_images(data: datasets.Dataset, column: str, path: Path) -> None:
    """uint8 [N, H, W, C]: C is 1 if every image is grey, else 3."""
    if not _write_blocks(path, len(data), _image_blocks(data, column, "L")):
        _write_blocks(path, len(data), _image_blocks(data, column, "RGB"))


_DECODERS: dict[str, Callable[[Any, str, Path], None]] = {"Image": _decode_images}


def _write_blocks(path: Path, rows: int, blocks: Blocks) -> bool:
    """Write a .npy file block by block; False if the blocks ended before all rows were there."""
    with path.open("wb") as file:
        written = 0
        for block in blocks:
            if not written:
                head = {"descr": "|u1", "fortran_order": False, "shape": (rows, *block.shape[1:])}
                np.lib.format.write_array_header_1_0(file, head)
            file.write(block.tobytes())
            written += len(block)
    return written == rows


def _image_blocks(data: datasets.Dataset, column: str, mode: str) -> Blocks:
    """Decoded images, uint8 [b, H, W, C]; with mode L (grey), it stops short at the first image in colour."""
    import datasets

    feature = data.features[column]
    encoded = data.select_columns([column]).cast_column(column, datasets.Image(decode=False))
    size = (0, 0)
    for start in range(0, len(data), BLOCK):
        images = []
        for row, value in enumerate(encoded[start : start + BLOCK][column], start):
            image = _open_image(feature, value, row)
            size = size if row else image.size
            if image.size != size:
                raise UserError(
                    f"image {row} is {_by(image.size)} pixels, but image 0 is {_by(size)}: make all the same size."
                )
            if mode == "L" and image.mode not in ("L", "1"):
                return
            images.append(np.asarray(image.convert(mode)))
        yield np.stack(images).reshape(len(images), size[1], size[0], -1)


def _by(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"


def _open_image(feature: Any, value: Any, row: int) -> Any:
    try:
        image = feature.decode_example(value)
    except Exception as error:  # Pillow raises a different error for each way in which a file can be broken
        raise UserError(f"image {row} can't be decoded: {_first_line(error)}") from error
    if image.mode.startswith(("I", "F")):
        raise UserError(f"image {row} has the pixel format {image.mode}, but only 8 bits per channel are supported.")
    return image
