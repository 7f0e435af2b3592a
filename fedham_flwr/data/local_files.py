"""Files and folders of this machine, as `datasets` finds and reads them, off the network."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedham_flwr.core.errors import UserError, first_line
from fedham_flwr.data import csv_files

if TYPE_CHECKING:
    import datasets

log = logging.getLogger("fedham_flwr")

_PAPERS = ("README", "LICENSE", "LICENCE", "CHANGELOG")
"""Files that lie beside data and need no word, without their endings."""
SPLIT_ORDER = {"train": 0, "validation": 1, "test": 2}
"""Of a data set's rows."""


def files_of(path: Path, copy: str) -> tuple[str, dict[str, list[Path]]]:
    """What the library would read a folder with, and the files of each split, train first; of .csv files those alone.

    Others that lie beside these are named once.

    Args:
        path: the folder.
        copy: folder for what the library writes.

    Raises:
        UserError: the library can't tell what the folder holds.
    """
    import datasets

    try:
        with offline():
            builder = datasets.load_dataset_builder(str(path), cache_dir=copy)
    except Exception as error:  # as in `load_files`
        raise UserError(f"dataset {path} can't be read: {_reason(error)}") from error
    name = str(builder.__class__.__module__).rpartition(".")[2]
    found = builder.config.data_files or {}
    order = sorted(found, key=lambda split: SPLIT_ORDER.get(str(split), 3))
    splits = {str(split): [Path(str(file)) for file in found[split]] for split in order}
    if name != "csv":
        return name, splits
    read = {split: [file for file in files if csv_files.is_csv(file)] for split, files in splits.items()}
    everything = {
        file
        for file in path.rglob("*")
        if file.is_file() and not any(part.startswith(".") for part in file.relative_to(path).parts)
    }
    left = sorted(everything - {file for files in read.values() for file in files})
    if not any(read.values()):
        raise UserError(f"dataset {path} has no file that ends in {', '.join(csv_files.ENDINGS)}.")
    if said := [file.relative_to(path).as_posix() for file in left if file.stem.upper() not in _PAPERS]:
        more = f" and {len(said) - 10} more" if len(said) > 10 else ""
        log.warning("dataset %s: left out: %s%s", path, ", ".join(said[:10]), more)
    return name, read


def load_files(
    builder: str, files: list[Path], path: Path, copy: str, within: tuple[str, list[Path]] = ("", [])
) -> datasets.DatasetDict:
    """Files by the library's builder of this name, or a folder that is named in its place.

    Args:
        builder: parquet, json, arrow; or the folder.
        files: of the builder; none of a folder.
        path: what was asked for.
        copy: folder for the copy that the library writes.
        within: of a folder its builder and its files, to name the one that can't be read.

    Raises:
        UserError: a file can't be read.
    """
    import datasets

    what = {"data_files": [str(file) for file in files]} if files else {}
    with offline():
        try:
            return datasets.load_dataset(builder, cache_dir=copy, **what)
        except Exception as error:  # the library and its readers raise errors of every kind for a file they can't read
            for file in within[1]:
                load_files(within[0], [file], file, copy)
            raise UserError(f"dataset {path} can't be read: {_reason(error)}") from error


def _reason(error: BaseException) -> str:
    """What the reader said, below the library's errors that say nothing."""
    while error.__cause__ is not None and str(error).startswith("An error occurred while generating the dataset"):
        error = error.__cause__
    return first_line(error)


@contextlib.contextmanager
def offline() -> Iterator[None]:
    """Keep `datasets` off the network, and quiet, for the time of reading local files."""
    import datasets
    import huggingface_hub

    switches: tuple[Any, ...] = (datasets.config, huggingface_hub.constants)
    before = [module.HF_HUB_OFFLINE for module in switches]
    quiet, logger = datasets.are_progress_bars_disabled(), logging.getLogger("datasets")
    level = logger.level
    logger.setLevel(logging.CRITICAL)  # its errors are raised too
    datasets.disable_progress_bars()
    for module in switches:
        module.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        logger.setLevel(level)
        for module, value in zip(switches, before, strict=True):
            module.HF_HUB_OFFLINE = value
        if not quiet:
            datasets.enable_progress_bars()
