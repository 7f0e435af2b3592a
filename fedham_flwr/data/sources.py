"""Where data comes from: `digits`, a local folder or file, or the Hugging Face Hub; its content's digest, and its rows.

The official splits of a data set are merged, train first. `datasets` is imported by the functions that read, not by
those that recognise a source.
"""

from __future__ import annotations

import contextlib
import difflib
import hashlib
import importlib.metadata
import json
import logging
import os
import re
import socket
import urllib.parse
import urllib.request
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from fedham_flwr.core.errors import UserError, first_line
from fedham_flwr.core.files import replacing
from fedham_flwr.data import csv_files, plain_texts
from fedham_flwr.data.kinds import image_folder
from fedham_flwr.data.kinds.table_settings import AS_FOUND, TableSettings
from fedham_flwr.data.local_files import SPLIT_ORDER, files_of, load_files, offline

if TYPE_CHECKING:
    import datasets

log = logging.getLogger("fedham_flwr")

BUILDERS = {
    ".parquet": "parquet", ".csv": "csv", ".tsv": "csv", ".json": "json", ".jsonl": "json", ".arrow": "arrow",
}  # fmt: skip
"""Endings of the files of rows, and what reads them; `.csv` files may be compressed, as `.csv.gz`."""
READABLE = (*BUILDERS, plain_texts.SUFFIX)
"""Endings of files that are a data set."""
_OF_FILES = re.compile(
    r"\.(xlsx|xls|ods|zip|t?gz|bz2|xz|zst|tar|7z|np[zy]|pkl|feather|h5|hdf5|orc|avro|xml|ya?ml|toml|db|sqlite|sav|"
    r"sas7bdat|dta|rds|rdata|mat|edf|bak|png|jpe?g|tiff?|bmp|gif|webp|dcm|nii|wav|mp3|flac|py)"
)
"""Endings of files that cannot be read, which nobody gives to a name on the Hub either."""


def is_data(path: Path) -> bool:
    """Whether a file can be read, by its ending."""
    return path.suffix.lower() in READABLE or csv_files.is_csv(path)


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
    file = is_data(path) or _OF_FILES.fullmatch(path.suffix.lower()) or ("/" in source and path.parent.is_dir())
    if re.fullmatch(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?", source) and not file:
        return None
    raise UserError(
        f"dataset is '{source}', but there is no file or folder {path}{_meant(path)}; give a path, a name on the Hub, "
        "or 'digits'."
    )


def _meant(path: Path) -> str:
    """A question after a path that is not there: whether its neighbour of nearly the same name was meant."""
    beside = [each.name for each in path.parent.iterdir()] if path.parent.is_dir() else []
    near = difflib.get_close_matches(path.name, beside, n=1)
    return f" (did you mean {near[0]}?)" if near else ""


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
    stats = [(".", path.stat())] if path.is_file() else sorted(_below(str(path)))
    touched = _sha256(json.dumps([(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats]).encode())
    known = _read_memo(memo)
    if known.get(str(path), ("",))[0] != touched:
        total = hashlib.sha256()
        for name, _ in stats:
            with (path / name).open("rb") as opened:
                total.update(f"{name}\0{hashlib.file_digest(opened, 'sha256').hexdigest()}\0".encode())
        known[str(path)] = [touched, total.hexdigest(), _check(str(path), touched, total.hexdigest())]
        with replacing(memo) as part:
            part.write_text(json.dumps(known))
    return f"local:{known[str(path)][1]}"


def _below(
    folder: str, above: str = "", seen: tuple[tuple[int, int], ...] = ()
) -> Iterator[tuple[str, os.stat_result]]:
    """The files below a folder, hidden ones left out, each looked at once: of many pictures that takes the time."""
    own = os.stat(folder)
    if (own.st_dev, own.st_ino) in seen:  # by a link to itself
        return
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if entry.is_dir():
                yield from _below(entry.path, f"{above}{entry.name}/", (*seen, (own.st_dev, own.st_ino)))
            elif entry.is_file():
                yield f"{above}{entry.name}", entry.stat()


def _read_memo(memo: Path) -> dict[str, list[str]]:
    """The memo, without what is damaged in it: losing it costs as long as reading the files takes, no more."""
    try:
        known = json.loads(memo.read_text())
        sound = {path: entry for path, entry in known.items() if entry[2:] == [_check(path, *entry[:2])]}
        damaged = any(len(entry) > 2 for path, entry in known.items() if path not in sound)  # not of an earlier version
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError, AttributeError):
        sound, damaged = {}, True
    if damaged:
        log.warning("the digests of data sets in %s are damaged: they are made anew", memo)
    return sound


def _check(*parts: str) -> str:
    return _sha256("\0".join(parts).encode())[:16]


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


# ---- reading -------------------------------------------------------------------------------------------------------


def load(source: str, copy: str, table: TableSettings = AS_FOUND) -> datasets.Dataset:
    """All rows of a source, of its official splits those of train first; columns of .csv files are texts, as written.

    Args:
        source: the `dataset` setting; not `digits`.
        copy: folder for the copy that the library writes of the local files it reads.
        table: how .csv files are read.

    Raises:
        UserError: the source can't be read or reached, or has no rows.
    """
    path = local_path(source)
    if path is None:
        return _merge(_load_hub(source), source)
    if (texts := plain_texts.load(path)) is not None:
        return texts
    if path.is_file():
        return _load_file(path, copy, table)
    if found := image_folder.find(path, BUILDERS):
        return image_folder.rows(found, lambda file: load(str(file), copy, table))
    path = path.resolve()  # as the library names files
    name, splits = files_of(path, copy)
    everything = [file for files in splits.values() for file in files]
    if name == "csv":
        return csv_files.read(everything, path, table)
    return _merge(load_files(str(path), [], path, copy, (name, everything)), source)


def _load_file(path: Path, copy: str, table: TableSettings) -> datasets.Dataset:
    """All rows of one file."""
    if csv_files.is_csv(path):
        return csv_files.read([path], path, table)
    if path.suffix.lower() not in BUILDERS:
        raise UserError(f"dataset is the file {path}, but only {', '.join(READABLE)} files and folders can be read.")
    return _merge(load_files(BUILDERS[path.suffix.lower()], [path], path, copy), str(path))


def _load_hub(name: str) -> datasets.DatasetDict:
    """The splits of a data set on the Hub; the library keeps its download, in its own cache."""
    import datasets
    from flwr_datasets import FederatedDataset

    def merge(splits: datasets.DatasetDict) -> datasets.DatasetDict:
        return datasets.DatasetDict({"train": _merge(splits, name)})

    try:
        with contextlib.nullcontext() if _has_network() else offline():
            whole = FederatedDataset(dataset=name, partitioners={}, preprocessor=merge, shuffle=False)
            return datasets.DatasetDict({"train": whole.load_split("train")})
    except datasets.exceptions.DatasetNotFoundError as error:
        raise UserError(
            f"dataset is '{name}', but the Hub has no such data set (or it is private), and {Path(name).absolute()} "
            f"doesn't exist{_meant(Path(name).absolute())}; give an existing name or path, or 'digits'."
        ) from error
    except OSError as error:
        raise UserError(
            f"dataset is '{name}', but the Hugging Face Hub cannot be reached ({first_line(error)}), and "
            f"{Path(name).absolute()} doesn't exist{_meant(Path(name).absolute())}; "
            'a local folder or dataset="digits" works without network.'
        ) from error
    except (ValueError, RuntimeError) as error:
        raise UserError(f"dataset '{name}' can't be loaded from the Hub: {first_line(error)}") from error


def _has_network() -> bool:
    """Whether the Hub's name is known here; without it the library would try again for minutes, each client anew."""
    from huggingface_hub import constants

    if urllib.request.getproxies():
        return True  # which knows the name in our place
    try:
        socket.getaddrinfo(urllib.parse.urlsplit(constants.ENDPOINT).hostname, 443)
    except OSError:
        return False
    return True


def _merge(splits: datasets.DatasetDict, source: str) -> datasets.Dataset:
    """All rows of all splits, those of train first."""
    import datasets

    order = sorted(splits, key=lambda name: SPLIT_ORDER.get(name, 3))
    try:
        merged = datasets.concatenate_datasets([splits[name] for name in order])
    except ValueError as error:
        raise UserError(f"dataset '{source}' has splits of different columns: {first_line(error)}") from error
    if not len(merged):
        raise UserError(f"dataset '{source}' has no rows.")
    return merged
