"""Where data comes from: `digits`, a local folder or file, or the Hugging Face Hub, decoded into plain arrays.

A source is decoded once into a folder with a `meta.json`, which names its kind, and what the kind needs: images have
`features.npy` (uint8 [N, H, W, C]), `labels.npy` (int64 [N]) and, with a client column, `owners.npy` (int64 [N]); texts
have what `texts.join` writes. The official splits of a data set are merged, train first. `datasets`, scikit-learn and
Pillow are imported by the functions that decode, not by those that recognise a source.
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
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from fedham_flwr import images, texts
from fedham_flwr.errors import UserError, first_line

if TYPE_CHECKING:
    import datasets

_BUILDERS = {".parquet": "parquet", ".csv": "csv", ".json": "json", ".jsonl": "json", ".arrow": "arrow"}
_SPLIT_ORDER = {"train": 0, "validation": 1, "test": 2}
_SIMPLE = re.compile(r"u?int\d+|bool|(large_)?string")


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
        return f"digits:{_scikit_learn()}"
    return f"hub:{source}"


@lru_cache(maxsize=1)
def _scikit_learn() -> str:
    """Its version, which takes longer to find than a client's data to open."""
    return importlib.metadata.version("scikit-learn")


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
    feature = _find_feature(data, columns.feature)
    meta = _DECODERS[_kind(data.features[feature])](data, feature, columns, folder)
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
            raise UserError(f"dataset {path} can't be read: {first_line(error)}") from error


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
            f"dataset is '{name}', but the Hugging Face Hub cannot be reached ({first_line(error)}), and "
            f'{Path(name).absolute()} doesn\'t exist; a local folder or dataset="digits" works without network.'
        ) from error
    except (ValueError, RuntimeError) as error:
        raise UserError(f"dataset '{name}' can't be loaded from the Hub: {first_line(error)}") from error


def _merge(splits: datasets.DatasetDict, source: str) -> datasets.Dataset:
    """All rows of all splits, those of train first."""
    import datasets

    order = sorted(splits, key=lambda name: _SPLIT_ORDER.get(name, 3))
    try:
        merged = datasets.concatenate_datasets([splits[name] for name in order])
    except ValueError as error:
        raise UserError(f"dataset '{source}' has splits of different columns: {first_line(error)}") from error
    if not len(merged):
        raise UserError(f"dataset '{source}' has no rows.")
    return merged


# ---- kinds of data: for each type of feature column, what writes the folder and returns its meta data ---------------


def _decode_images(data: datasets.Dataset, feature: str, columns: Columns, folder: Path) -> dict[str, Any]:
    labels, classes = _label_codes(data, _find_label(data, columns.label))
    owners, names = _owners(data, columns.client)
    np.save(folder / "labels.npy", labels)
    if owners is not None:
        np.save(folder / "owners.npy", owners)
    images.decode(data, feature, folder / "features.npy")
    return {"kind": "image", "classes": classes} | names


def _decode_texts(data: datasets.Dataset, feature: str, columns: Columns, folder: Path) -> dict[str, Any]:
    if columns.label:
        raise UserError(
            f"label-column is '{columns.label}', but of the texts in '{feature}' the next character is predicted, "
            "which takes no labels; leave label-column empty."
        )
    owners, names = _owners(data, columns.client)
    characters = texts.join(_values(data, feature, "feature-column"), owners, folder)
    return {"kind": "text", "characters": characters} | names


_DECODERS: dict[str, Callable[[Any, str, Columns, Path], dict[str, Any]]] = {
    "Image": _decode_images,
    "string": _decode_texts,
    "large_string": _decode_texts,
}


def _owners(data: datasets.Dataset, column: str) -> tuple[npt.NDArray[np.int64] | None, dict[str, list[str]]]:
    """Whose each row is and the owners' names, if there is a client column."""
    if not column:
        return None, {}
    owners, names = _codes(data, _named(data, "client-column", column), "client-column")
    return owners, {"owners": names}


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
    """The column named by the setting, else the only image column, else the one called "text"."""
    if column:
        kind = _kind(data.features[_named(data, "feature-column", column)])
        if kind not in _DECODERS:
            raise UserError(f"feature-column '{column}' is of kind {kind}, but must be one of {', '.join(_DECODERS)}.")
        return column
    if "Image" not in map(_kind, data.features.values()) and "text" in data.features:
        return _find_feature(data, "text")
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
