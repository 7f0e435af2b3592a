"""One picture: a file's bytes -> pixels of 8 bits, upright and opaque, grey or RGB; and its place in a square.

Of 16 bits a channel each value v becomes the nearest to v * 255 / 65535. What is transparent lies on white. Of an
animation the first picture is read. Pillow is imported by the functions that use it.
"""

from __future__ import annotations

import io
import re
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from fedham_flwr.core.errors import UserError

SIXTEEN_BITS = 65535
"""The largest number that a picture of more than 8 bits per channel may hold."""
ORIENTATION = 274
"""The number of the EXIF field that says how a camera was held."""
_WORDS = re.compile(r"(RGB|RGBA|RGBX|LA);16[BLN]")
"""Pillow's names for 16 bits a channel in colour, of which it keeps the upper 8."""

Resize = Literal["stretch", "crop", "pad"]
Pixels = npt.NDArray[np.uint8]
Words = npt.NDArray[np.uint16]


@dataclass(frozen=True)
class ImageSettings:
    """Settings under `image.`.

    Attributes:
        resize: how a picture that is no square becomes one: stretch; crop, to the square in its middle; or pad, with
            black on both sides.
        channels: grey; rgb; or auto, which is grey if all pictures are.
        unreadable: what becomes of pictures that can't be read: refuse, or leave-out.
    """

    resize: Resize = "stretch"
    channels: Literal["auto", "grey", "rgb"] = "auto"
    unreadable: Literal["refuse", "leave-out"] = "refuse"


AS_USUAL = ImageSettings()
"""The defaults."""


def read(encoded: bytes, side: int = 0) -> Any:
    """A picture, as Pillow has it, with 8 bits a channel: mode L if it is grey, else RGB.

    Args:
        encoded: the bytes of a file.
        side: pixels of the square that it is made for: a photograph that is more than twice as large is decoded to a
            half, a quarter or an eighth, which takes less than half of the time. 0: as it is.

    Raises:
        UserError: it has more than 16 bits a channel.
        Exception: whatever Pillow raises of a broken file.
    """
    from PIL import Image

    with Image.open(io.BytesIO(encoded)) as opened:
        if side:
            opened.draft(None, (2 * side, 2 * side))  # of JPEG; others stay as they are
        words = _sixteen_bits(opened, encoded)
        opened.load()
        turned = opened.getexif().get(ORIENTATION, 1)
        image = opened.copy() if words is None else Image.fromarray(_scaled(words))
    return plain(image, turned)


def plain(image: Any, turned: int = 1) -> Any:
    """A picture of Pillow's in mode L or RGB, as it is seen on white paper.

    Args:
        image: with 8 or 16 bits a channel.
        turned: how the camera was held, 1 to 8, as EXIF has it.

    Raises:
        UserError: it has more than 16 bits a channel.
    """
    from PIL import Image

    if image.mode.startswith(("I", "F")):
        image = _narrowed(image)
    if turned in range(2, 9):
        image = _upright(image, turned)
    if "transparency" in image.info or image.mode in ("LA", "La", "PA", "RGBA", "RGBa"):
        grey = image.mode in ("1", "L", "LA", "La")
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image).convert("L" if grey else "RGB")
    if image.mode == "P":
        image = image.convert("RGB")
        red, green, blue = image.split()
        image = red if red.tobytes() == green.tobytes() == blue.tobytes() else image
    if image.mode in ("L", "RGB"):
        return image
    return image.convert("L" if image.mode == "1" else "RGB")


def squared(image: Any, side: int, resize: str) -> Any:
    """A picture of Pillow's in a square; where it shrinks, each new pixel is a mean over all those that it covers.

    Args:
        image: in mode L or RGB.
        side: pixels of the square; 0: it stays as it is.
        resize: stretch, crop or pad.
    """
    from PIL import Image

    if not side:
        return image
    width, height = image.size
    if resize == "pad" and width != height:
        scale = side / max(width, height)
        inner = image.resize((max(1, round(width * scale)), max(1, round(height * scale))), Image.Resampling.BILINEAR)
        whole = Image.new(image.mode, (side, side))
        whole.paste(inner, ((side - inner.width) // 2, (side - inner.height) // 2))
        return whole
    if resize == "crop":
        edge = min(width, height)
        left, top = (width - edge) // 2, (height - edge) // 2
        image = image.crop((left, top, left + edge, top + edge))
    return image.resize((side, side), Image.Resampling.BILINEAR)


# ---- 16 bits -----------------------------------------------------------------------------------------------------


def _sixteen_bits(opened: Any, encoded: bytes) -> Words | None:
    """uint16 [H, W, C] of a picture in colour with 16 bits a channel; None of others.

    Pillow keeps one of the two bytes of each number: the upper, and the lower if it is told that they lie the other way
    round.
    """
    from PIL import Image

    names = {name for tile in opened.tile for name in _names(tile.args) if ";16" in name}
    if opened.mode not in ("RGB", "RGBA", "LA") or not names or not all(map(_WORDS.fullmatch, names)):
        return None
    with Image.open(io.BytesIO(encoded)) as other:
        if "LA;16B" in names:  # four bytes for each pixel, as RGBA has
            other.tile = [tile._replace(args="RGBA") for tile in other.tile]
            both = np.asarray(other)
            return _joined(both[..., 0::2], both[..., 1::2])
        other.tile = [tile._replace(args=_swapped(tile.args)) for tile in other.tile]
        low = np.asarray(other)
    return _joined(np.asarray(opened), low)


def _joined(high: Pixels, low: Pixels) -> Words:
    """16 bits of the upper 8 and the lower 8."""
    joined: Words = high.astype(np.uint16) * np.uint16(256) + low.astype(np.uint16)
    return joined


def _names(arguments: Any) -> list[str]:
    """The texts among the arguments of one of Pillow's decoders."""
    given = arguments if isinstance(arguments, tuple) else (arguments,)
    return [each for each in given if isinstance(each, str)]


def _swapped(arguments: Any) -> Any:
    """The same arguments with the order of bytes turned round."""
    import sys

    little = sys.byteorder == "little"
    turned = {"B": "L", "L": "B", "N": "B" if little else "L"}
    given = arguments if isinstance(arguments, tuple) else (arguments,)
    swapped = tuple(
        each[:-1] + turned[each[-1]] if isinstance(each, str) and _WORDS.fullmatch(each) else each for each in given
    )
    return swapped if isinstance(arguments, tuple) else swapped[0]


def _scaled(words: npt.NDArray[Any]) -> Pixels:
    """16 bits -> 8 bits, to the nearest."""
    return ((words.astype(np.uint32) * 255 + SIXTEEN_BITS // 2) // SIXTEEN_BITS).astype(np.uint8)


def _narrowed(image: Any) -> Any:
    """A grey picture of 16 bits with 8."""
    from PIL import Image

    pixels = np.asarray(image)
    if image.mode == "F" or pixels.min() < 0 or pixels.max() > SIXTEEN_BITS:
        raise UserError(
            f"has the pixel format {image.mode} with values up to {pixels.max():g}, but only 8 and 16 bits per channel "
            "are supported."
        )
    return Image.fromarray(_scaled(pixels))


def _upright(image: Any, turned: int) -> Any:
    """A picture as the camera was held."""
    from PIL import Image

    turn = Image.Transpose
    how = (
        turn.FLIP_LEFT_RIGHT, turn.ROTATE_180, turn.FLIP_TOP_BOTTOM, turn.TRANSPOSE, turn.ROTATE_270, turn.TRANSVERSE,
        turn.ROTATE_90,
    )  # fmt: skip
    return image.transpose(how[turned - 2])
