"""New rows for a trained model: a file, a folder of pictures, one picture, or a table in memory.

`datasets` and pandas are imported by the functions that read.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fedham_flwr.core.errors import UserError, first_line
from fedham_flwr.data.kinds.image_folder import ENDINGS as PICTURES
from fedham_flwr.data.sources import load

if TYPE_CHECKING:
    import datasets

ARRAY = ".npy"
"""Ending of a file with the inputs of a model whose data a function of a user's loaded."""


@dataclass(frozen=True)
class NewRows:
    """Rows in the order of the input.

    Attributes:
        data: the rows.
        files: of pictures in a folder their names, from the folder on; else none.
        passed_over: files of the folder that are no pictures.
    """

    data: datasets.Dataset
    files: tuple[str, ...] = ()
    passed_over: int = 0


@contextmanager
def open_rows(given: Any, recipe: Mapping[str, Any]) -> Iterator[NewRows]:
    """The rows of a source; what is written to read them is gone at the end.

    Args:
        given: path of a file or folder, or a pandas.DataFrame.
        recipe: of the model, which says what rows are.

    Raises:
        UserError: there is nothing, or it cannot be read as such rows.
    """
    import datasets

    if not isinstance(given, str | os.PathLike):
        yield NewRows(_of_frame(given))
        return
    path = Path(os.path.abspath(Path(given).expanduser()))
    if not path.exists():
        raise UserError(f"there is no file or folder {path}")
    pictures = recipe["kind"] == "image"
    if pictures and (path.is_dir() or path.suffix.lower() in PICTURES):
        yield _pictures(path, str(recipe.get("column") or "image"))
    elif path.is_dir():
        raise UserError(f"{path} is a folder, and this model is for rows of the kind {recipe['kind']}: wanted one file")
    elif path.suffix.lower() == ".txt":
        column = str(recipe.get("column") or "text")
        yield NewRows(datasets.Dataset.from_dict({column: _lines(path)}))
    else:
        with tempfile.TemporaryDirectory() as copy:
            yield NewRows(load(str(path), copy))


def _of_frame(given: Any) -> datasets.Dataset:
    import datasets
    import pandas as pd

    try:
        frame = given if isinstance(given, pd.DataFrame) else pd.DataFrame(given)
        return datasets.Dataset.from_pandas(frame.reset_index(drop=True), preserve_index=False)
    except Exception as error:  # of pandas and pyarrow, for what is no table, or a column of several types
        raise UserError(f"the rows cannot be read as a table: {first_line(error)}") from error


def _pictures(path: Path, column: str) -> NewRows:
    """The pictures of a folder, however deep, by their names; or one picture."""
    import datasets

    if path.is_file():
        found, others, root = [path], 0, path.parent
    else:
        root = path
        files = [file for file in sorted(path.rglob("*")) if file.is_file()]
        seen = [file for file in files if not any(part.startswith(".") for part in file.relative_to(path).parts)]
        found = [file for file in seen if file.suffix.lower() in PICTURES]
        others = len(seen) - len(found)
    if not found:
        raise UserError(f"{path} has no pictures: wanted files {', '.join(PICTURES)}")
    values = [{"path": str(file), "bytes": None} for file in found]
    features = datasets.Features({column: datasets.Image()})
    names = tuple(file.relative_to(root).as_posix() for file in found)
    return NewRows(datasets.Dataset.from_dict({column: values}, features=features), names, others)


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is no text in UTF-8: {error.reason} at byte {error.start}") from error


def as_array(given: Any) -> np.ndarray[Any, Any] | None:
    """An array of inputs, of a tensor, an array or a file `.npy`; None of anything else.

    Raises:
        UserError: the file holds no array.
    """
    if isinstance(given, str | os.PathLike):
        if Path(given).suffix.lower() != ARRAY:
            return None
        try:
            return np.asarray(np.load(Path(given).expanduser(), allow_pickle=False))
        except (OSError, ValueError) as error:
            raise UserError(f"{given} cannot be read as an array: {first_line(error)}") from error
    return np.asarray(given) if hasattr(given, "__array__") and not hasattr(given, "columns") else None
