"""Images: a column of encoded pictures -> one array of pixels.

`datasets` and Pillow are imported by the functions that decode.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from fedham_flwr.core.errors import UserError, first_line

if TYPE_CHECKING:
    import datasets

SIXTEEN_BITS = 65535
"""The largest number that a picture of more than 8 bits per channel may hold."""
BLOCK = 1000
"""Rows decoded at a time: all the memory that decoding takes."""

Blocks = Iterator[npt.NDArray[np.uint8]]


def decode(data: datasets.Dataset, column: str, path: Path, side: int = 0) -> None:
    """Write uint8 [N, H, W, C] to a .npy file: C is 1 if every image is grey, else 3.

    Args:
        data: its rows.
        column: of encoded images; 16 bits per channel are scaled to 8.
        path: of the file.
        side: pixels of the square that images are resized to; 0: they stay as they are.

    Raises:
        UserError: an image is broken, of another size than the first without `side`, or of more than 16 bits per
            channel.
    """
    if not _write_blocks(path, len(data), _image_blocks(data, column, "L", side)):
        _write_blocks(path, len(data), _image_blocks(data, column, "RGB", side))


def resized(pixels: npt.NDArray[np.uint8], side: int) -> npt.NDArray[np.uint8]:
    """Grey images uint8 [N, H, W] in a square of so many pixels: [N, side, side]; with 0 as they are."""
    from PIL import Image

    return np.stack([np.asarray(_square(Image.fromarray(each), side)) for each in pixels]) if side else pixels


def _square(image: Any, side: int) -> Any:
    """An image of Pillow's in a square; where it shrinks, each new pixel is a mean over all those that it covers."""
    from PIL import Image

    return image.resize((side, side), Image.Resampling.BILINEAR) if side else image


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


def _image_blocks(data: datasets.Dataset, column: str, mode: str, side: int) -> Blocks:
    """Decoded images, uint8 [b, H, W, C]; with mode L (grey), it stops short at the first image in colour."""
    import datasets

    feature = data.features[column]
    encoded = data.select_columns([column]).cast_column(column, datasets.Image(decode=False))
    size = (0, 0)
    for start in range(0, len(data), BLOCK):
        images = []
        for row, value in enumerate(encoded[start : start + BLOCK][column], start):
            image = _open_image(feature, value, row)
            if mode == "L" and image.mode not in ("L", "1"):
                return
            image = _square(image.convert(mode), side)
            size = size if row else image.size
            if image.size != size:
                raise UserError(
                    f"{_named(row, value)} is {_by(image.size)} pixels, but image 0 is {_by(size)}: set image-size, "
                    "the pixels of the square that all are resized to."
                )
            images.append(np.asarray(image))
        yield np.stack(images).reshape(len(images), size[1], size[0], -1)


def _by(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"


def _named(row: int, value: dict[str, Any] | None) -> str:
    """An image by its number, and by its file where it has one."""
    path = (value or {}).get("path")
    return f"image {row} ({path})" if path else f"image {row}"


def _open_image(feature: Any, value: Any, row: int) -> Any:
    try:
        if not value.get("bytes") and os.path.isfile(value.get("path") or ""):
            value = value | {"bytes": Path(value["path"]).read_bytes()}  # the library would leave a broken file open
        image = feature.decode_example(value)
    except Exception as error:  # Pillow raises a different error for each way in which a file can be broken
        raise UserError(f"{_named(row, value)} can't be decoded: {first_line(error)}") from error
    if not image.mode.startswith(("I", "F")):
        return image
    from PIL import Image

    pixels = np.asarray(image)
    if image.mode == "F" or pixels.min() < 0 or pixels.max() > SIXTEEN_BITS:
        raise UserError(
            f"{_named(row, value)} has the pixel format {image.mode} with values up to {pixels.max():g}, but only 8 "
            "and 16 bits per channel are supported."
        )
    return Image.fromarray(((pixels.astype(np.uint32) * 255 + SIXTEEN_BITS // 2) // SIXTEEN_BITS).astype(np.uint8))
