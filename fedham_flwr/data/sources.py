"""Where data comes from: `digits`, a local folder or file, or the Hugging Face Hub, decoded into plain arrays.

A source is decoded once into a folder with a `meta.json`, which names its kind, and what the kind needs: images have
`features.npy` (uint8 [N, H, W, C]), `labels.npy` (int64 [N]) and, with a client column, `owners.npy` (int64 [N]).
Tables too, but with float32 [N, F] features, NaN where a value is missing; texts have what `texts.join` writes. The
official splits of a data set are merged, train first. `datasets`, scikit-learn and Pillow are imported by the functions
that decode, not by those that recognise a source.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import re
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from fedham_flwr.core.errors import UserError, first_line
from fedham_flwr.data import targets
from fedham_flwr.data.columns import (
    Columns,
    codes_of,
    find_feature,
    find_label,
    find_label_of_table,
    kind_of_column,
    label_codes,
    named,
    table_columns,
    values_of,
)
from fedham_flwr.data.kinds import image as images
from fedham_flwr.data.kinds import table as tables
from fedham_flwr.data.kinds import text as texts

if TYPE_CHECKING:
    import datasets

_BUILDERS = {".parquet": "parquet", ".csv": "csv", ".json": "json", ".jsonl": "json", ".arrow": "arrow"}
_SPLIT_ORDER = {"train": 0, "validation": 1, "test": 2}


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


def decode(source: str, columns: Columns, folder: Path, side: int = 0) -> None:
    """Write the arrays and the meta data of a source into this folder, which exists and is empty.

    Args:
        source: the `dataset` setting.
        columns: which columns are what.
        folder: where.
        side: pixels of the square that images are resized to; 0: they stay as they are.

    Raises:
        UserError: the source can't be read or reached, or its columns aren't what is needed.
        OSError: the folder can't be written.
    """
    if source == "digits":
        _decode_digits(columns, folder, side)
        return
    path = local_path(source)
    # The library writes a copy of the files it reads; of a local source it isn't needed for longer than decoding takes.
    with tempfile.TemporaryDirectory(dir=folder) as copy:
        splits = _load_hub(source) if path is None else _load_local(path, copy)
        _decode_rows(_merge(splits, source), columns, folder, side)


def _decode_rows(data: datasets.Dataset, columns: Columns, folder: Path, side: int) -> None:
    table = table_columns(data, columns)
    feature = "" if table else find_feature(data, columns)
    image = bool(feature) and kind_of_column(data.features[feature]) == "Image"
    if side and not image:
        raise UserError(
            f"image-size={side} resizes images, and the data set is {'a table' if table else 'text'}: set 0."
        )
    if table:
        meta = _decode_table(data, table, columns, folder)
    elif image:
        meta = _decode_images(data, feature, columns, folder, side)
    else:
        meta = _decode_texts(data, feature, columns, folder)
    (folder / "meta.json").write_text(json.dumps(meta))


def _decode_digits(columns: Columns, folder: Path, side: int) -> None:
    """scikit-learn's 1797 hand-written digits, 8x8 grey, from 0..16 to 0..255."""
    from sklearn.datasets import load_digits

    for setting, wanted, actual in (("feature", columns.feature, "image"), ("label", columns.label, "label")):
        if wanted not in ("", actual):
            raise UserError(f"{setting}-column is '{wanted}', but the digits have only the columns image and label.")
    if columns.client:
        raise UserError(f"client-column is '{columns.client}', but the digits have only the columns image and label.")
    if columns.target not in ("auto", "class"):
        raise UserError(f"target is '{columns.target}', but the digits have one label each; wanted class.")
    digits = load_digits()
    pixels = np.rint(digits.images * (255 / 16)).astype(np.uint8)
    np.save(folder / "features.npy", images.resized(pixels, side)[..., None])
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


# ---- kinds of data: what writes the folder and returns its meta data ------------------------------------------------


def _decode_images(data: datasets.Dataset, feature: str, columns: Columns, folder: Path, side: int) -> dict[str, Any]:
    targets.check(columns, "images")
    if columns.target in targets.CLASSLESS:
        meta = targets.decode(data, columns, (), folder) | _write_owners(data, columns, folder)
    else:
        meta = _decode_labels(data, find_label(data, columns.label), columns, folder)
    images.decode(data, feature, folder / "features.npy", side)
    return meta | {"kind": "image"}


def _decode_table(data: datasets.Dataset, table: Sequence[str], columns: Columns, folder: Path) -> dict[str, Any]:
    targets.check(columns, "a table")
    if columns.target in targets.CLASSLESS:
        meta = targets.decode(data, columns, table, folder) | _write_owners(data, columns, folder)
    else:
        label = find_label_of_table(data, columns, table)
        meta = _decode_labels(data, label, columns, folder)
        meta["declared"] = kind_of_column(data.features[label]) == "ClassLabel"
    decoded = tables.decode(data, table, folder / "features.npy")
    return meta | {"kind": "table", "columns": [asdict(column) for column in decoded]}


def _decode_labels(data: datasets.Dataset, label: str, columns: Columns, folder: Path) -> dict[str, Any]:
    """Write whose each row is and its class; the meta data that go with them."""
    labels, classes = label_codes(data, label)
    np.save(folder / "labels.npy", labels)
    return {"classes": classes} | _write_owners(data, columns, folder)


def _write_owners(data: datasets.Dataset, columns: Columns, folder: Path) -> dict[str, Any]:
    owners, names = _owners(data, columns.client)
    if owners is not None:
        np.save(folder / "owners.npy", owners)
    return dict(names)


def _decode_texts(data: datasets.Dataset, feature: str, columns: Columns, folder: Path) -> dict[str, Any]:
    targets.check(columns, "texts")
    if columns.label:
        raise UserError(
            f"label-column is '{columns.label}', but of the texts in '{feature}' the next character is predicted, "
            "which takes no labels; leave label-column empty."
        )
    owners, names = _owners(data, columns.client)
    characters = texts.join(values_of(data, feature, "feature-column"), owners, folder)
    return {"kind": "text", "characters": characters} | names


def _owners(data: datasets.Dataset, column: str) -> tuple[npt.NDArray[np.int64] | None, dict[str, list[str]]]:
    """Whose each row is and the owners' names, if there is a client column."""
    if not column:
        return None, {}
    owners, names = codes_of(data, named(data, "client-column", column), "client-column")
    return owners, {"owners": names}
