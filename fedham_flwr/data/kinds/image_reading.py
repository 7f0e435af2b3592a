"""Pictures of a data set, one after the other, as Pillow has them; those that can't be read with the reason.

`datasets` is imported by the functions that use it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from fedham_flwr.core.errors import UserError, first_line
from fedham_flwr.data.kinds.image_pixels import plain, read

if TYPE_CHECKING:
    import datasets

BLOCK = 64
"""Pictures read at a time, in the form that they have in their files: all the memory that decoding takes."""


class Picture(NamedTuple):
    """A picture of a data set.

    Attributes:
        row: its number.
        name: what to call it: by its number, and by its file where it has one.
        image: Pillow's, in mode L or RGB; None if it can't be read.
        why: the sentence that says why it can't be read; empty if it can.
    """

    row: int
    name: str
    image: Any
    why: str = ""


def pictures(data: datasets.Dataset, column: str, side: int = 0) -> Iterator[Picture]:
    """The pictures of a column, in the order of the rows.

    Args:
        data: the rows.
        column: of encoded images.
        side: pixels of the square that they are made for; 0: as they are.
    """
    import datasets

    feature = data.features[column]
    encoded = data.select_columns([column]).cast_column(column, datasets.Image(decode=False))
    for start in range(0, len(data), BLOCK):
        for row, value in enumerate(encoded[start : start + BLOCK][column], start):
            yield _opened(feature, value or {}, row, side)


def from_files(files: Sequence[str | Path], column: str = "image") -> datasets.Dataset:
    """Rows with one column of images, of files in their order.

    Args:
        files: of pictures.
        column: its name.

    Raises:
        UserError: one of them is no file.
    """
    import datasets

    for file in files:
        if not os.path.isfile(file):
            raise UserError(f"there is no picture {file}.")
    paths = {column: [os.path.abspath(file) for file in files]}
    return datasets.Dataset.from_dict(paths, features=datasets.Features({column: datasets.Image()}))


def column_of(rows: datasets.Dataset, wanted: str) -> str:
    """The column of images: the one that is wanted, or the only one.

    Args:
        rows: of any data set.
        wanted: its name.

    Raises:
        UserError: there are none, or several of other names.
    """
    found = [name for name, feature in rows.features.items() if type(feature).__name__ == "Image"]
    if wanted in found:
        return wanted
    if len(found) != 1:
        raise UserError(
            f"the model is for images, and the data have {len(found)} columns of images among "
            f"{', '.join(rows.column_names)}; wanted one called '{wanted}'."
        )
    return str(found[0])


def _opened(feature: Any, value: dict[str, Any], row: int, side: int) -> Picture:
    path = value.get("path") or ""
    name = f"image {row} ({path})" if path else f"image {row}"
    if not value:
        return Picture(row, name, None, f"{name} is missing.")
    try:
        if value.get("bytes"):
            return Picture(row, name, read(value["bytes"], side))
        if os.path.isfile(path):
            return Picture(row, name, read(Path(path).read_bytes(), side))
        return Picture(row, name, plain(feature.decode_example(value)))  # at an address that the library knows
    except UserError as error:
        return Picture(row, name, None, f"{name} {error}")
    except Exception as error:  # Pillow raises a different error for each way in which a file can be broken
        return Picture(row, name, None, f"{name} can't be decoded: {first_line(error).rstrip('.')}.")
