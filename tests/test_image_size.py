"""Images of any size and of 16 bits: resized and scaled when they are decoded; what cannot be read is named."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from fedham_flwr.core.errors import UserError
from fedham_flwr.data.client_data import ClientData
from fedham_flwr.data.clients import open_partition
from fedham_flwr.data.data_settings import DataSettings, Fractions, Partitioning
from fedham_flwr.data.kinds import image_reading as images
from fedham_flwr.data.own import open_own
from fedham_flwr.settings import parse

CASES = Path(__file__).resolve().parents[2] / "shared" / "cases" / "images"
Open = Callable[..., ClientData]


@pytest.fixture
def opened(tmp_path: Path) -> Open:
    """All samples of a data set, from a cache of the test's own."""

    def open_one(dataset: object, **given: Any) -> ClientData:
        settings = {"partitioning": Partitioning("iid"), "fractions": Fractions(0.0, 0.25)} | given
        return open_partition(DataSettings(dataset=str(dataset), cache_dir=str(tmp_path / "cache"), **settings), 0, 1)

    return open_one


def save(path: Path, pixels: np.ndarray[Any, Any], **given: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **given)
    return path


@pytest.fixture
def pets(tmp_path: Path) -> Path:
    """Four pictures of different sizes, of one grey value each, in a folder for each class."""
    for number, (kind, size) in enumerate([("cat", (20, 9)), ("cat", (5, 5)), ("dog", (6, 4)), ("dog", (33, 40))]):
        save(tmp_path / "pets" / kind / f"{number}.png", np.full(size, 50 * number, dtype=np.uint8))
    return tmp_path / "pets"


def test_images_of_different_sizes_become_squares(opened: Open, pets: Path) -> None:
    client = opened(pets, image_size=7)
    assert client.features.shape == (4, 7, 7, 1)
    assert client.features.dtype == torch.uint8
    assert [image.unique().tolist() for image in client.features] == [[0], [50], [100], [150]]
    assert client.classes == ("cat", "dog")


def test_of_an_image_that_shrinks_every_pixel_counts(opened: Open, tmp_path: Path) -> None:
    board = np.indices((32, 32)).sum(0) % 2 * 200  # of a checkerboard, a sample of its pixels would be one colour
    for number in range(4):
        save(tmp_path / "boards" / "ab"[number % 2] / f"{number}.png", board.astype(np.uint8))
    inner = opened(tmp_path / "boards", image_size=8).features[:, 1:-1, 1:-1]
    assert set(inner.unique().tolist()) <= {99, 100, 101}


def test_colours_are_kept(opened: Open, tmp_path: Path) -> None:
    colours = [(250, 10, 0), (0, 120, 7)] * 2
    for number, colour in enumerate(colours):
        pixels = np.broadcast_to(np.array(colour, dtype=np.uint8), (4 + number, 5, 3))
        save(tmp_path / "colours" / "ab"[number % 2] / f"{number}.png", np.ascontiguousarray(pixels))
    features = opened(tmp_path / "colours", image_size=3).features
    assert features.shape == (4, 3, 3, 3)
    assert sorted(tuple(image[1, 1].tolist()) for image in features) == sorted(colours)


def test_images_of_different_sizes_are_refused_without_a_size(opened: Open, pets: Path) -> None:
    with pytest.raises(
        UserError, match=r"image \d \(.*pets.*png\) is \d+x\d+ pixels, but image 0 \(.*png\) is .* set image-size"
    ):
        opened(pets)


def test_the_digits_are_resized_too(opened: Open) -> None:
    plain, large = opened("digits").features, opened("digits", image_size=16).features
    assert large.shape == (1797, 16, 16, 1)
    assert opened("digits", image_size=8).features.equal(plain)
    means = [features.float().mean().item() for features in (plain, large)]
    assert means[0] == pytest.approx(means[1], rel=0.01)


def test_a_size_is_part_of_the_caches_key_where_it_is_given(opened: Open, pets: Path, tmp_path: Path) -> None:
    opened(pets, image_size=4)
    opened(pets, image_size=5)
    opened("digits")
    assert len(list((tmp_path / "cache").glob("data-*/"))) == 3
    before = "data-08e8cbed2ff4d52d"  # of ["digits:1.0", the columns], of format 2, as without sizes
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fedham_flwr.data.clients.content_key", lambda *_: "digits:1.0")
        opened("digits")
        opened("digits", image_size=8)
    assert (tmp_path / "cache" / before).is_dir()
    assert len(list((tmp_path / "cache").glob("data-*/"))) == 5


def test_sixteen_bits_are_scaled_to_eight(opened: Open, tmp_path: Path) -> None:
    values = np.array([[0, 128, 129, 257], [30_000, 65_278, 65_406, 65_535]], dtype=np.uint16)
    for number in range(4):
        save(tmp_path / "scans" / "ab"[number % 2] / f"{number}.png", values)
    client = opened(tmp_path / "scans")
    # 65535 / 255 = 257, so 128 is nearer to 0 and 129 to 1
    assert client.features[0, ..., 0].tolist() == [[0, 0, 1, 1], [117, 254, 254, 255]]


@pytest.mark.parametrize(
    ("pixels", "what"),
    [
        (np.full((4, 6), 70_000, dtype=np.int32), r"pixel format I with values up to 70000, but only 8 and 16 bits"),
        (np.full((4, 6), -1, dtype=np.int32), r"pixel format I with values up to -1, but only 8 and 16 bits"),
        (np.full((4, 6), 0.5, dtype=np.float32), r"pixel format F with values up to 0\.5, but only 8 and 16 bits"),
    ],
)
def test_more_than_sixteen_bits_are_refused(
    opened: Open, tmp_path: Path, pixels: np.ndarray[Any, Any], what: str
) -> None:
    for number in range(4):
        save(tmp_path / "scans" / "ab"[number % 2] / f"{number}.tiff", pixels)
    with pytest.raises(UserError, match=rf"image 0 \(.*scans.a.0\.tiff\) has the {what} per channel"):
        opened(tmp_path / "scans")


def test_a_file_that_is_cut_off_is_named(opened: Open, pets: Path) -> None:
    whole = io.BytesIO()
    noise = torch.randint(0, 256, (40, 40), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    Image.fromarray(noise.numpy()).save(whole, "PNG")
    (pets / "cat" / "1.png").write_bytes(whole.getvalue()[:600])
    with pytest.raises(UserError, match=r"image \d \(.*pets.cat.1\.png\) can't be decoded: "):
        opened(pets, image_size=4)


def test_what_is_no_image_is_not_resized(opened: Open, tmp_path: Path) -> None:
    import datasets

    numbers: dict[str, list[Any]] = {"a": [1.0, 2.0] * 4, "b": [3.0, 4.0] * 4, "label": [0, 1] * 4}
    datasets.Dataset.from_dict(numbers).to_parquet(tmp_path / "rows.parquet")
    datasets.Dataset.from_dict({"text": ["to be or not to be"] * 9}).to_parquet(tmp_path / "lines.parquet")
    with pytest.raises(UserError, match=r"image-size=9 resizes images, and the data set is a table: set 0"):
        opened(tmp_path / "rows.parquet", feature_column="a b", label_column="label", image_size=9)
    with pytest.raises(UserError, match=r"image-size=9 resizes images, and the data set is text: set 0"):
        opened(tmp_path / "lines.parquet", image_size=9)
    with pytest.raises(UserError, match=r'image-size=9 resizes images when .* dataset="own:load" brings arrays: set 0'):
        open_own(DataSettings(dataset="own:load", image_size=9), 0, 1)


def test_the_setting_goes_to_the_data() -> None:
    assert parse({}).data().image_size == 0
    assert parse({"image-size": 32}).data().image_size == 32
    with pytest.raises(UserError, match=r"image-size=-1: wanted greater than or equal to 0"):
        parse({"image-size": -1})


@pytest.mark.skipif(not CASES.is_dir(), reason="cases of real users")
def test_cases_of_users(opened: Open) -> None:
    with pytest.raises(UserError, match=r"\(.*\.png\) is 29x28 pixels, .* set image-size"):
        opened(CASES / "sizes")
    assert opened(CASES / "sizes", image_size=28).features.shape == (24, 28, 28, 1)
    scaled = opened(CASES / "bit16").features
    assert scaled.shape == (24, 28, 28, 1)
    assert scaled.max() > 100
    with pytest.raises(UserError, match=r"image \d+ \(.*trunc.*\.png\) can't be decoded"):
        opened(CASES / "trunc")


def test_blocks_are_resized_one_by_one(opened: Open, pets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "BLOCK", 1)
    assert opened(pets, image_size=6).features.shape == (4, 6, 6, 1)
