"""Images: a column of encoded pictures -> one array of pixels.

`datasets` and Pillow are imported by the functions that decode.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from fedham_flwr.core.errors import UserError, first_line

if TYPE_CHECKING:
    import datasets

BLOCK = 1000
"""Rows decoded at a time: all the memory that decoding takes."""

Blocks = Iterator[npt.NDArray[np.uint8]]


def decode(data: datasets.Dataset, column: str, path: Path, side: int = 0) -> None:
    """Write uint8 [N, H, W, C] to a .npy file: C is 1 if every image is grey, else 3. 16 bits become 8.

    Args:
        data: the rows.
        column: the one with the images.
        path: the file.
        side: pixels of the squares that the images are resized to; 0: as they are.

    Raises:
        UserError: an image is broken, of another size than the first, or of 32 bits per channel.
    """
    if not _write_blocks(path, len(data), _image_blocks(data, column, "L", side)):
        _write_blocks(path, len(data), _image_blocks(data, column, "RGB", side))


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
    from PIL import Image

    feature = data.features[column]
    encoded = data.select_columns([column]).cast_column(column, datasets.Image(decode=False))
    size = (0, 0)
    for start in range(0, len(data), BLOCK):
        images = []
        for row, value in enumerate(encoded[start : start + BLOCK][column], start):
            image = _open_image(feature, value, row)
            if mode == "L" and image.mode not in ("L", "1"):
                return
            if side:
                # smoothed where it shrinks, so that no pixel is left out
                image = image.convert(mode).resize((side, side), resample=Image.Resampling.BILINEAR)
            size = size if row else image.size
            if image.size != size:
                raise UserError(
                    f"image {row} is {_by(image.size)} pixels, but image 0 is {_by(size)}: make all the same size, or "
                    "set image-size, the pixels of a side that they are resized to."
                )
            images.append(np.asarray(image.convert(mode)))
        yield np.stack(images).reshape(len(images), size[1], size[0], -1)


def _by(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"


def _open_image(feature: Any, value: Any, row: int) -> Any:
    try:
        image = feature.decode_example(value)
    except Exception as error:  # Pillow raises a different error for each way in which a file can be broken
        name = value.get("path") if isinstance(value, dict) else None
        what = f"image {row} ({name})" if name else f"image {row}"
        raise UserError(f"{what} can't be decoded: {first_line(error)}") from error
    if image.mode.startswith("I;16"):
        from PIL import Image

        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode.startswith(("I", "F")):
        raise UserError(f"image {row} has the pixel format {image.mode}, but only 8 bits per channel are supported.")
    return image
