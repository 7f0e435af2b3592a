"""Pictures of all sorts: what becomes of their pixels, in training and by `encode`, with values asserted."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fedham_flwr.core.errors import UserError
from fedham_flwr.data.client_data import ClientData
from fedham_flwr.data.clients import open_partition
from fedham_flwr.data.data_settings import DataSettings, Fractions, Partitioning
from fedham_flwr.data.kinds import image as images
from fedham_flwr.data.kinds import image_pixels
from fedham_flwr.data.kinds.image_pixels import ImageSettings

Open = Callable[..., ClientData]
Array = np.ndarray[Any, Any]
RNG = np.random.default_rng(17)


@pytest.fixture
def opened(tmp_path: Path) -> Open:
    """All samples of a data set, from a cache of the test's own."""

    def open_one(dataset: object, **given: Any) -> ClientData:
        settings = {"partitioning": Partitioning("iid"), "fractions": Fractions(0.0, 0.25)} | given
        return open_partition(DataSettings(dataset=str(dataset), cache_dir=str(tmp_path / "cache"), **settings), 0, 1)

    return open_one


def saved(image: Image.Image, kind: str = "PNG", **given: Any) -> bytes:
    whole = io.BytesIO()
    image.save(whole, kind, **given)
    return whole.getvalue()


def pixels(encoded: bytes) -> Array:
    return np.asarray(image_pixels.read(encoded))


def png(words: Array, colours: int) -> bytes:
    """A PNG file of 16 bits a channel, which Pillow doesn't write in colour: [H, W, channels]."""

    def part(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in words)
    head = struct.pack(">IIBBBBB", words.shape[1], words.shape[0], 16, colours, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + part(b"IHDR", head) + part(b"IDAT", zlib.compress(rows)) + part(b"IEND", b"")


def tiff(words: Array, order: str, squeezed: bool, turned: int = 1) -> bytes:
    """A TIFF file of 16 bits a channel in colour, [H, W, 3 or 4], with the order of bytes < or >."""
    height, width, channels = words.shape
    content = words.astype(f"{order}u2").tobytes()
    content = zlib.compress(content) if squeezed else content
    content += b"\0" * (len(content) % 2)
    bits = 8 + len(content)
    tags = [(256, 3, 1, width), (257, 3, 1, height), (258, 3, channels, bits), (259, 3, 1, 8 if squeezed else 1)]
    tags += [(262, 3, 1, 2), (273, 4, 1, 8), (274, 3, 1, turned), (277, 3, 1, channels), (278, 3, 1, height)]
    tags += [(279, 4, 1, len(content)), (284, 3, 1, 1)] + ([(338, 3, 1, 2)] if channels == 4 else [])
    body = content + struct.pack(f"{order}{channels}H", *[16] * channels)
    whole = (b"II" if order == "<" else b"MM") + struct.pack(f"{order}HI", 42, 8 + len(body)) + body
    whole += struct.pack(f"{order}H", len(tags))
    for tag, kind, count, value in tags:
        form = f"{order}HHIHH" if kind == 3 and count == 1 else f"{order}HHII"
        whole += struct.pack(form, tag, kind, count, *([value, 0] if form.endswith("HH") else [value]))
    return whole + struct.pack(f"{order}I", 0)


def to_eight(words: Array) -> Array:
    return np.rint(words.astype(np.float64) * 255 / 65535).astype(np.uint8)


def on_white(colours: Array, alpha: Array) -> Array:
    share = alpha.astype(np.float64)[..., None] / 255
    return colours * share + 255 * (1 - share)


# ---- pixels of one file ----------------------------------------------------------------------------------------------

GREY = RNG.integers(0, 256, (5, 7), dtype=np.uint8)
COLOUR = RNG.integers(0, 256, (5, 7, 3), dtype=np.uint8)
ALPHA = RNG.integers(0, 256, (5, 7), dtype=np.uint8)


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "BMP", "PPM", "TGA"])
def test_grey_and_colour_are_kept_as_they_are(kind: str) -> None:
    assert np.array_equal(pixels(saved(Image.fromarray(GREY), kind)), GREY)
    assert np.array_equal(pixels(saved(Image.fromarray(COLOUR), kind)), COLOUR)


def test_one_bit_is_black_and_white() -> None:
    assert np.array_equal(pixels(saved(Image.fromarray(GREY > 99))), (GREY > 99) * 255)


def test_what_is_transparent_lies_on_white() -> None:
    both = np.dstack([COLOUR, ALPHA])
    assert np.abs(pixels(saved(Image.fromarray(both))) - on_white(COLOUR, ALPHA)).max() <= 0.51
    clear = np.dstack([COLOUR, np.zeros_like(ALPHA)])
    assert pixels(saved(Image.fromarray(clear))).min() == 255
    grey = pixels(saved(Image.fromarray(np.dstack([GREY, ALPHA]), "LA")))
    assert grey.shape == (5, 7)
    assert np.abs(grey - on_white(GREY[..., None], ALPHA)[..., 0]).max() <= 0.51


def test_an_alpha_that_is_opaque_changes_nothing() -> None:
    opaque = np.full_like(ALPHA, 255)
    assert np.array_equal(pixels(saved(Image.fromarray(np.dstack([COLOUR, opaque])))), COLOUR)
    assert np.array_equal(pixels(saved(Image.fromarray(np.dstack([GREY, opaque]), "LA"))), GREY)


def test_a_palette_gives_its_colours() -> None:
    image = Image.fromarray(GREY % 3, "P")
    image.putpalette([250, 0, 10, 3, 200, 4, 5, 6, 150])
    wanted = np.array([[250, 0, 10], [3, 200, 4], [5, 6, 150]], dtype=np.uint8)[GREY % 3]
    assert np.array_equal(pixels(saved(image)), wanted)
    wanted[GREY % 3 == 1] = 255
    assert np.array_equal(pixels(saved(image, transparency=1)), wanted)
    assert np.array_equal(pixels(saved(image, transparency=bytes([255, 0, 255]))), wanted)


def test_a_palette_of_grey_is_grey() -> None:
    image = Image.fromarray(GREY, "P")
    image.putpalette([255 - value // 3 for value in range(768)])
    assert np.array_equal(pixels(saved(image)), 255 - GREY)


@pytest.mark.parametrize("channels", [3, 4])
@pytest.mark.parametrize("kind", ["png", "<", ">", "<squeezed", ">squeezed"])
def test_sixteen_bits_in_colour_are_scaled_to_the_nearest(channels: int, kind: str) -> None:
    words = RNG.integers(0, 65536, (5, 7, channels)).astype(np.uint16)
    words[0, 0] = 65535
    words[0, 1] = [0, 128, 129, 65535][:channels]  # 65535 / 255 = 257, so that 128 is nearer to 0 and 129 to 1
    whole = png(words, 2 if channels == 3 else 6) if kind == "png" else tiff(words, kind[0], len(kind) > 1)
    found = pixels(whole)
    assert found[0, :2].tolist() == [[255, 255, 255], [0, 0, 1]]
    wanted = to_eight(words)
    if channels == 3:
        assert np.array_equal(found, wanted)
    else:
        assert np.abs(found - on_white(wanted[..., :3], wanted[..., 3])).max() <= 0.51


def test_sixteen_bits_of_grey_are_scaled_with_and_without_alpha() -> None:
    words = RNG.integers(0, 65536, (5, 7, 2)).astype(np.uint16)
    assert np.array_equal(pixels(png(words[..., :1], 0)), to_eight(words[..., 0]))
    found = pixels(png(words, 4))
    assert found.shape == (5, 7)
    wanted = to_eight(words)
    assert np.abs(found - on_white(wanted[..., :1], wanted[..., 1])[..., 0]).max() <= 0.51
    words[..., 1] = 65535
    assert np.array_equal(pixels(png(words, 4)), to_eight(words[..., 0]))


def test_ink_becomes_light() -> None:
    ink = np.zeros((8, 8, 4), dtype=np.uint8)
    ink[..., 0] = 255  # cyan alone
    found = pixels(saved(Image.fromarray(ink, "CMYK"), "JPEG", quality=100))
    assert np.abs(found.astype(int) - [0, 255, 255]).max() <= 3


TURNS: dict[int, Callable[[Array], Array]] = {
    1: lambda seen: seen,
    2: lambda seen: seen[:, ::-1],
    3: lambda seen: seen[::-1, ::-1],
    4: lambda seen: seen[::-1],
    5: lambda seen: seen.swapaxes(0, 1),
    6: np.rot90,
    7: lambda seen: seen[::-1, ::-1].swapaxes(0, 1),
    8: lambda seen: np.rot90(seen, -1),
}
"""How a camera that was held in each way lays down what is seen."""


@pytest.mark.parametrize("turned", TURNS)
def test_pictures_stand_upright(turned: int) -> None:
    exif = Image.Exif()
    exif[image_pixels.ORIENTATION] = turned
    laid = np.ascontiguousarray(TURNS[turned](COLOUR))
    assert np.array_equal(pixels(saved(Image.fromarray(laid), exif=exif)), COLOUR)
    words = np.ascontiguousarray(TURNS[turned](COLOUR.astype(np.uint16) * 257))
    assert np.array_equal(pixels(tiff(words, "<", False, turned)), COLOUR)


@pytest.mark.parametrize("kind", ["GIF", "TIFF", "PNG", "WEBP"])
def test_of_an_animation_the_first_picture_is_read(kind: str) -> None:
    frames = [Image.fromarray(np.full((6, 6, 3), level, dtype=np.uint8)) for level in (40, 200)]
    lossless = {"lossless": True} if kind == "WEBP" else {}
    found = pixels(saved(frames[0], kind, save_all=True, append_images=frames[1:], **lossless))
    assert np.unique(found).tolist() == [40]


def test_a_large_photograph_is_decoded_to_a_part() -> None:
    halves = np.zeros((160, 240, 3), dtype=np.uint8)
    halves[:, 120:] = 210
    whole = saved(Image.fromarray(halves), "JPEG", quality=95)
    assert image_pixels.read(whole).size == (240, 160)
    part = image_pixels.read(whole, side=20)
    assert part.size == (60, 40)
    square = np.asarray(image_pixels.squared(part, 20, "stretch")).astype(int)
    assert np.abs(square[:, :9]).max() <= 3
    assert np.abs(square[:, 11:] - 210).max() <= 3


# ---- squares ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("resize", "wanted"),
    [
        ("stretch", [[5, 5, 95, 95], [5, 5, 95, 95], [5, 5, 95, 95], [5, 5, 95, 95]]),
        ("crop", [[5, 5, 95, 95]] * 4),
        ("pad", [[0, 0, 0, 0], [5, 5, 95, 95], [5, 5, 95, 95], [0, 0, 0, 0]]),
    ],
)
def test_what_is_no_square_becomes_one(resize: str, wanted: list[list[int]]) -> None:
    wide = np.full((8, 16), 5, dtype=np.uint8)
    wide[:, 8:] = 95
    if resize == "crop":
        wide[:, :4] = wide[:, 12:] = 200  # what is cut off
    square = np.asarray(image_pixels.squared(Image.fromarray(wide), 4, resize)).astype(int)
    assert np.abs(square[:, [0, 3]] - np.array(wanted)[:, [0, 3]]).max() == 0
    assert np.abs(square - wanted).max() <= 12  # on both sides of an edge


# ---- data sets and new pictures --------------------------------------------------------------------------------------


@pytest.fixture
def zoo(tmp_path: Path) -> Path:
    """Two grey pictures and two in colour, of different sizes."""
    for number, (kind, size) in enumerate([("ape", (9, 6)), ("ape", (5, 5)), ("bee", (6, 14, 3)), ("bee", (8, 8, 4))]):
        content = RNG.integers(0, 256, size, dtype=np.uint8)
        (tmp_path / "zoo" / kind).mkdir(parents=True, exist_ok=True)
        Image.fromarray(content).save(tmp_path / "zoo" / kind / f"{number}.png")
    return tmp_path / "zoo"


@pytest.mark.parametrize("resize", ["stretch", "crop", "pad"])
def test_new_pictures_become_the_same_bits_as_those_of_training(opened: Open, zoo: Path, resize: str) -> None:
    import datasets

    from fedham_flwr.data.cache import meta_of

    client = opened(zoo, image_size=4, image=ImageSettings(resize=resize))  # type: ignore[arg-type]
    (folder,) = (zoo.parent / "cache").glob("data-*/")
    recipe = meta_of(folder)["recipe"]
    assert recipe == {
        "kind": "image", "column": "image", "height": 4, "width": 4, "channels": 3, "image-size": 4, "resize": resize,
    }  # fmt: skip
    files = sorted(zoo.rglob("*.png"))
    assert np.array_equal(images.encode_files(files, recipe), client.features.numpy())
    rows = datasets.Dataset.from_dict({"photo": [{"bytes": each.read_bytes(), "path": None} for each in files]})
    rows = rows.cast_column("photo", datasets.Image())
    assert np.array_equal(images.encode(rows, recipe), client.features.numpy())
    grey = images.encode(rows, recipe | {"channels": 1})
    assert grey.shape == (4, 4, 4, 1)
    assert np.array_equal(grey[:2], client.features.numpy()[:2, ..., :1])


def test_of_grey_pictures_before_one_in_colour_all_are_in_colour(
    opened: Open, zoo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(images, "_COPIED", 7)
    features = opened(zoo, image_size=5).features
    assert features.shape == (4, 5, 5, 3)
    grey = np.asarray(Image.open(zoo / "ape" / "1.png"))
    assert np.array_equal(features[1].numpy(), np.repeat(grey[..., None], 3, -1))


def test_new_pictures_that_do_not_fit_are_named(zoo: Path) -> None:
    import datasets

    recipe = images.recipe_of("image", (5, 5, 1), 0, ImageSettings())
    assert images.encode_files([zoo / "ape" / "1.png"], recipe).shape == (1, 5, 5, 1)
    with pytest.raises(UserError, match=r"image 1 \(.*0\.png\) is 6x9 pixels, but the model is for 5x5"):
        images.encode_files([zoo / "ape" / "1.png", zoo / "ape" / "0.png"], recipe)
    with pytest.raises(UserError, match=r"there is no picture .*nowhere\.png"):
        images.encode_files([zoo / "nowhere.png"], recipe)
    (zoo / "cut.png").write_bytes((zoo / "bee" / "2.png").read_bytes()[:-40])
    with pytest.raises(UserError, match=r"image 0 \(.*cut\.png\) can't be decoded: .*truncated"):
        images.encode_files([zoo / "cut.png"], recipe | {"image-size": 5})
    with pytest.raises(UserError, match=r"the model is for images, and the data have 0 columns of images among age"):
        images.encode(datasets.Dataset.from_dict({"age": [1]}), recipe)
