"""Images: a column of encoded pictures -> one array of pixels, of which new pictures become like ones by `encode`.

`datasets` and Pillow are imported by the functions that decode.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from fedham_flwr.core.errors import UserError
from fedham_flwr.data.kinds.image_pixels import AS_USUAL, ImageSettings, Pixels, squared
from fedham_flwr.data.kinds.image_reading import column_of, from_files, pictures

if TYPE_CHECKING:
    import datasets

NAMED = 10
"""Pictures that are named of those which can't be read."""

_COPIED = 1 << 24  # bytes

Recipe = Mapping[str, Any]


class Decoded(NamedTuple):
    """What came of decoding.

    Attributes:
        kept: int64, the numbers of the rows whose pictures could be read.
        recipe: how new pictures become like these: see `encode`.
        note: the sentence that lists those which can't be read; empty if all could.
    """

    kept: npt.NDArray[np.int64]
    recipe: dict[str, Any]
    note: str = ""


def decode(
    data: datasets.Dataset, column: str, path: Path, side: int = 0, settings: ImageSettings = AS_USUAL
) -> Decoded:
    """Write uint8 [N, H, W, C] to a .npy file: C is 1 if every image is grey, else 3, or as the settings say.

    Args:
        data: its rows.
        column: of encoded images; 16 bits per channel are scaled to 8.
        path: of the file.
        side: pixels of the square that images are resized to; 0: they stay as they are.
        settings: how they are resized, and what becomes of images that can't be read.

    Raises:
        UserError: an image is broken, of another size than the first without `side`, or of more than 16 bits per
            channel; or there is no room for them.
    """
    kept: list[int] = []
    broken: list[str] = []
    first = None
    head, channels = 0, 1
    with path.open("w+b") as file:
        for picture in pictures(data, column, side):
            image = picture.image
            if picture.why:
                if settings.unreadable == "refuse":
                    raise UserError(f'{picture.why} image.unreadable="leave-out" goes on without such images.')
                broken.append(picture.why)
                continue
            if settings.channels != "auto":
                image = image.convert("L" if settings.channels == "grey" else "RGB")
            if first is None:
                first = (image.size, picture.name)
                head = _write_head(file, (0, 0, 0, 1))
                _check_room(path, len(data), side, image)
            if not side and image.size != first[0]:
                raise UserError(
                    f"{picture.name} is {_by(image.size)} pixels, but {first[1]} is {_by(first[0])}: set image-size, "
                    "the pixels of the square that all are resized to."
                )
            if image.mode == "RGB" and channels == 1:
                _to_colour(file, head)
                channels = 3
            pixels = squared(image, side, settings.resize)
            file.write((pixels if channels == 1 else pixels.convert("RGB")).tobytes())
            kept.append(picture.row)
        if first is None:
            raise UserError(f"none of the {len(data)} images can be read: {broken[0]}")
        width, height = (side, side) if side else first[0]
        _write_head(file, (len(kept), height, width, channels))
    note = left_out(broken, len(data)) if broken else ""
    return Decoded(np.array(kept), recipe_of(column, (height, width, channels), side, settings), note)


def recipe_of(column: str, shape: tuple[int, int, int], side: int, settings: ImageSettings) -> dict[str, Any]:
    """What `encode` reads: all that makes pictures alike.

    Args:
        column: of the images.
        shape: (height, width, channels) of an image as it is stored.
        side: the setting image-size.
        settings: how images are resized.
    """
    height, width, channels = shape
    size = {"height": height, "width": width, "channels": channels}
    return {"kind": "image", "column": column, **size, "image-size": side, "resize": settings.resize}


def left_out(broken: Sequence[str], of: int) -> str:
    """The sentence that lists the images which can't be read."""
    more = f" and {len(broken) - NAMED} more" if len(broken) > NAMED else ""
    listed = " ".join(broken[:NAMED])
    return f"{len(broken)} of {of} images can't be read and are left out: {listed}{more}"


def resized(pixels: Pixels, side: int, resize: str = "stretch") -> Pixels:
    """Grey images uint8 [N, H, W] in a square of so many pixels: [N, side, side]; with 0 as they are."""
    from PIL import Image

    return np.stack([np.asarray(squared(Image.fromarray(each), side, resize)) for each in pixels]) if side else pixels


# ---- new pictures ----------------------------------------------------------------------------------------------------


def encode(rows: datasets.Dataset, recipe: Recipe) -> Pixels:
    """New pictures as those are stored that a model was trained on: uint8 [N, H, W, C], the same for the same file.

    Args:
        rows: with a column of images, that of the recipe or the only one.
        recipe: of the data: column, height, width, channels (1: grey, 3: RGB), image-size (0: as they are) and resize.

    Raises:
        UserError: there is no such column, an image can't be read, or it has another size and image-size is 0.
    """
    side, channels = int(recipe["image-size"]), int(recipe["channels"])
    shape = (int(recipe["height"]), int(recipe["width"]), channels)
    encoded = np.empty((len(rows), *shape), dtype=np.uint8)
    for picture in pictures(rows, column_of(rows, str(recipe["column"])), side):
        image = picture.image
        if picture.why:
            raise UserError(picture.why)
        if not side and image.size != shape[1::-1]:
            raise UserError(
                f"{picture.name} is {_by(image.size)} pixels, but the model is for {_by(shape[1::-1])}, since it was "
                "trained without image-size."
            )
        pixels = squared(image.convert("L" if channels == 1 else "RGB"), side, str(recipe["resize"]))
        encoded[picture.row] = np.asarray(pixels).reshape(shape)
    return encoded


def encode_files(files: Sequence[str | Path], recipe: Recipe) -> Pixels:
    """As `encode`, of files in their order.

    Args:
        files: of pictures.
        recipe: as for `encode`.

    Raises:
        UserError: a file isn't there or can't be read, or has another size and image-size is 0.
    """
    return encode(from_files(files, str(recipe["column"])), recipe)


# ---- reading and writing ---------------------------------------------------------------------------------------------


def _by(size: Sequence[int]) -> str:
    return f"{size[0]}x{size[1]}"


def _write_head(file: IO[bytes], shape: tuple[int, ...]) -> int:
    """The head of a .npy file, as long for any number of images; its length."""
    file.seek(0)
    np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})
    return file.tell()


def _to_colour(file: IO[bytes], head: int) -> None:
    """The grey pixels behind the head three times each, since a picture in colour follows: in place, from the end."""
    written = file.tell() - head
    for end in range(written, 0, -_COPIED):
        start = max(0, end - _COPIED)
        file.seek(head + start)
        grey = np.frombuffer(file.read(end - start), dtype=np.uint8)
        file.seek(head + 3 * start)
        file.write(grey.repeat(3).tobytes())
    file.seek(head + 3 * written)


def _check_room(path: Path, rows: int, side: int, image: Any) -> None:
    """Refuse what the disk has no room for, before an hour was spent on it."""
    size = rows * (side * side if side else image.width * image.height) * len(image.getbands())
    free = shutil.disk_usage(path.parent).free
    if size > free:
        raise UserError(
            f"{rows} images of {_by((side, side) if side else image.size)} pixels take {size / 1e9:,.1f} GB when they "
            f"are decoded, and {path.parent.parent} has room for {free / 1e9:,.1f} GB: set image-size to less, or "
            "cache-dir to a folder that has room."
        )
