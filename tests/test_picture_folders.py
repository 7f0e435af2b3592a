"""Folders of pictures as people have them: which files are pictures, and what their classes and labels are."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import SHARED_DATA
from PIL import Image

from fedham_flwr.core.errors import UserError
from fedham_flwr.data.client_data import ClientData
from fedham_flwr.data.clients import open_node, open_partition
from fedham_flwr.data.data_settings import DataSettings, Fractions, Partitioning
from fedham_flwr.data.kinds.image_pixels import ImageSettings

CASES = SHARED_DATA.parent / "cases" / "images"
Open = Callable[..., ClientData]


@pytest.fixture
def opened(tmp_path: Path) -> Open:
    """All samples of a data set, from a cache of the test's own."""

    def open_one(dataset: object, **given: Any) -> ClientData:
        settings = {"partitioning": Partitioning("iid"), "fractions": Fractions(0.0, 0.25)} | given
        return open_partition(DataSettings(dataset=str(dataset), cache_dir=str(tmp_path / "cache"), **settings), 0, 1)

    return open_one


def folder(root: Path, *files: str) -> Path:
    """Pictures of 4 x 4 pixels: the first all 0, the second all 10, and so on."""
    for number, file in enumerate(files):
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        kind = "JPEG" if file.lower().endswith(("jpg", "jpeg", "jfif")) else None
        Image.fromarray(np.full((4, 4), 10 * number, dtype=np.uint8)).save(root / file, kind)
    return root


def of(client: ClientData) -> list[tuple[int, str]]:
    """The first pixel and the class of each picture, in the order of the rows."""
    labels = client.labels.tolist()
    return [(int(client.features[row, 0, 0, 0]), client.classes[labels[row]]) for row in range(len(labels))]


def test_other_files_among_pictures_are_no_data_and_said_once(
    opened: Open, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pets = folder(tmp_path / "pets", "cat/1.PNG", "cat/2.JPG", "dog/3.png", "dog/4.Jpeg", "dog/5.jfif")
    for other in (
        "Thumbs.db",
        "cat/Thumbs.db",
        "cat/1.PNG.bak",
        "dog/notes.txt",
        "readme.md",
        "dog/~3.png",
        "list.csv",
    ):
        (pets / other).write_bytes(b"a,b\n1,2\n")
    for hidden in (".DS_Store", "cat/.1.png", "__MACOSX/cat/._1.png", ".git/x.png"):
        (pets / hidden).parent.mkdir(parents=True, exist_ok=True)
        (pets / hidden).write_bytes(b"x")
    for _ in range(2):
        assert of(opened(pets)) == [(0, "cat"), (10, "cat"), (20, "dog"), (30, "dog"), (40, "dog")]
    assert [record.getMessage() for record in caplog.records] == [
        f"dataset {pets}: left out, since they are no pictures: Thumbs.db, list.csv, readme.md, cat/1.PNG.bak, "
        "cat/Thumbs.db and 2 more"
    ]


def test_official_splits_are_no_classes_and_train_comes_first(opened: Open, tmp_path: Path) -> None:
    files = ("Test/a/1.png", "Train/b/2.png", "Train/a/3.png", "Val/a/4.png")
    lower = folder(tmp_path / "lower", *[file.lower() for file in files])
    assert of(opened(lower)) == [(20, "a"), (10, "b"), (30, "a"), (0, "a")]
    animals = folder(tmp_path / "things", "train/1.png", "car/2.png", "car/3.png")
    assert of(opened(animals)) == [(10, "car"), (20, "car"), (0, "train")]


def test_an_empty_folder_is_a_class_without_samples(
    opened: Open, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pets = folder(tmp_path / "pets", "ape/1.png", "ape/2.png", "cow/3.png", "cow/4.png")
    (pets / "bee").mkdir()
    client = opened(pets)
    assert client.classes == ("ape", "bee", "cow")
    assert client.labels.tolist() == [0, 0, 2, 2]
    assert "bee: folders without pictures; each stays a class, without samples" in caplog.text
    node = open_node(DataSettings(cache_dir=str(tmp_path / "cache"), fractions=Fractions(0.0, 0.25)), str(pets))
    assert node.classes == ("ape", "bee", "cow")


def test_the_innermost_folder_is_the_class(opened: Open, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    wards = folder(tmp_path / "wards", "north/sick/1.png", "north/well/2.png", "south/sick/3.png")
    assert of(opened(wards)) == [(0, "sick"), (10, "well"), (20, "sick")]
    assert "pictures lie 2 folders deep, and the innermost is the class: sick, well" in caplog.text


def test_pictures_at_different_depths_are_refused(opened: Open, tmp_path: Path) -> None:
    pets = folder(tmp_path / "pets", "cat/1.png", "cat/persian/2.png", "dog/3.png")
    with pytest.raises(UserError, match=r"the pictures cat/1\.png and cat/persian/2\.png lie at different depths"):
        opened(pets)


def test_pictures_without_classes_are_refused(opened: Open, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"set label-column: .*pictures need a folder for each class"):
        opened(folder(tmp_path / "flat", "1.png", "2.png"))


def test_sites_of_grey_and_of_coloured_pictures_can_have_the_same_channels(opened: Open, tmp_path: Path) -> None:
    pets = folder(tmp_path / "pets", "cat/1.png", "cat/2.png", "dog/3.png", "dog/4.png")
    assert opened(pets).features.shape == (4, 4, 4, 1)
    colour = opened(pets, image=ImageSettings(channels="rgb"))
    assert colour.features[:, 0, 0].tolist() == [[0] * 3, [10] * 3, [20] * 3, [30] * 3]
    Image.fromarray(np.full((4, 4, 3), [255, 0, 0], dtype=np.uint8)).save(pets / "cat" / "1.png")
    assert opened(pets).features.shape == (4, 4, 4, 3)
    grey = opened(pets, image=ImageSettings(channels="grey"))
    assert grey.features[:, 0, 0, 0].tolist() == [76, 10, 20, 30]  # 0.299 of 255
    assert opened("digits", image=ImageSettings(channels="rgb")).features.shape == (1797, 8, 8, 3)


# ---- metadata --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_metadata_say_what_a_picture_shows(opened: Open, tmp_path: Path, kind: str) -> None:
    photos = folder(tmp_path / "photos", "1.png", "2.png", "3.png", "4.png")
    rows = [("3.png", "dusk", 9), ("1.png", "dawn", 6), ("4.png", "dusk", 3), ("2.png", "noon", 1)]
    lines = ["file_name,label,people", *[f"{name},{label},{people}" for name, label, people in rows]]
    if kind == "jsonl":
        lines = [f'{{"file_name": "{n}", "label": "{label}", "people": {people}}}' for n, label, people in rows]
    (photos / f"metadata.{kind}").write_text("\n".join(lines))
    assert of(opened(photos)) == [(20, "dusk"), (0, "dawn"), (30, "dusk"), (10, "noon")]
    assert opened(photos, label_column="people", target="value").labels.tolist() == [9.0, 6.0, 3.0, 1.0]


@pytest.mark.parametrize(
    ("label", "values", "classes", "numbers"),
    [
        ("stage", ["3", "7", "3", "12"], ("3", "7", "12"), [0, 1, 0, 2]),
        ("ill", ["true", "false", "true", "false"], ("false", "true"), [1, 0, 1, 0]),
        ("grade", ["1.0", "4.0", "4.0", "1.0"], ("1", "4"), [0, 1, 1, 0]),
    ],
)
def test_labels_that_are_no_numbers_from_zero_keep_their_names(
    opened: Open, tmp_path: Path, label: str, values: list[str], classes: tuple[str, ...], numbers: list[int]
) -> None:
    photos = folder(tmp_path / "photos", "1.png", "2.png", "3.png", "4.png")
    lines = [f"file_name,{label}", *[f"{number}.png,{value}" for number, value in enumerate(values, 1)]]
    (photos / "metadata.csv").write_text("\n".join(lines))
    client = opened(photos, label_column=label)
    assert (client.classes, client.labels.tolist()) == (classes, numbers)


def test_several_labels_of_a_picture(opened: Open, tmp_path: Path) -> None:
    photos = folder(tmp_path / "photos", "1.png", "2.png", "3.png", "4.png")
    lines = ["file_name,tags,dog,cat", "1.png,dog;cat,1,1", "2.png,cat,0,1", "3.png,;,0,0", "4.png, bird ; dog,1,0"]
    (photos / "metadata.csv").write_text("\n".join(lines))
    tags = opened(photos, label_column="tags", target="multi-label")
    assert tags.classes == ("bird", "cat", "dog")
    assert tags.labels.tolist() == [[0, 1, 1], [0, 1, 0], [0, 0, 0], [1, 0, 1]]
    flags = opened(photos, label_column="dog cat", target="multi-label")
    assert (flags.classes, flags.labels.tolist()) == (("dog", "cat"), [[1, 1], [0, 1], [0, 0], [1, 0]])


def test_metadata_that_name_what_is_not_there_are_refused(
    opened: Open, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    photos = folder(tmp_path / "photos", "a/1.png", "a/2.png", "b/3.png", "b/4.png", "5.png")
    (photos / "metadata.csv").write_text("file_name,label\na/1.png,x\nb/3.png,y\n5.png,x\nb/4.png,y\n")
    assert of(opened(photos)) == [(0, "x"), (20, "y"), (40, "x"), (30, "y")]
    assert "1 pictures that the metadata don't name are left out: a/2.png" in caplog.text
    (photos / "metadata.csv").write_text("file_name,label\na/1.png,x\nb/7.png,y\n")
    with pytest.raises(UserError, match=r"metadata\.csv names 'b/7\.png' in row 1, and there is no such picture"):
        opened(photos)
    (photos / "metadata.csv").write_text("name,label\na/1.png,x\n")
    with pytest.raises(UserError, match=r"metadata\.csv has no column file_name"):
        opened(photos)


# ---- pictures that can't be read -------------------------------------------------------------------------------------


def test_what_cannot_be_read_is_refused_or_left_out_with_its_label(opened: Open, tmp_path: Path) -> None:
    pets = folder(tmp_path / "pets", *[f"{'cat' if n < 13 else 'dog'}/{n:02}.png" for n in range(16)])
    for number in range(1, 13):
        (pets / "cat" / f"{number:02}.png").write_bytes(b"no picture")
    with pytest.raises(UserError, match=r"image 1 \(.*cat/01\.png\) can't be decoded: .*leave-out"):
        opened(pets)
    client = opened(pets, image=ImageSettings(unreadable="leave-out"))
    assert of(client) == [(0, "cat"), (130, "dog"), (140, "dog"), (150, "dog")]
    (notes,) = [note for note in _notes(tmp_path) if note]
    assert notes[0].startswith("12 of 16 images can't be read and are left out: image 1 (")
    assert notes[0].count(".png)") == 10
    assert notes[0].endswith(" and 2 more")
    for number in (0, 13, 14, 15):
        (pets / ("cat" if number < 13 else "dog") / f"{number:02}.png").write_bytes(b"")
    with pytest.raises(UserError, match=r"none of the 16 images can be read: image 0 "):
        opened(pets, image=ImageSettings(unreadable="leave-out"))


def _notes(tmp_path: Path) -> list[list[str]]:
    from fedham_flwr.data.cache import meta_of

    return [meta_of(each).get("notes", []) for each in (tmp_path / "cache").glob("data-*/")]


# ---- cases of real users ---------------------------------------------------------------------------------------------


@pytest.mark.skipif(not CASES.is_dir(), reason="cases of real users")
def test_cases_of_users(opened: Open, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"\(.*\d\d\d\.png\) is 29x28 pixels, but image 0 \(.*000\.png\) .*image-size"):
        opened(CASES / "sizes")
    sizes = opened(CASES / "sizes", image_size=28)
    assert sizes.features.shape == (24, 28, 28, 1)
    assert (sizes.classes, sizes.labels.tolist()) == (("cat", "dog"), [0] * 12 + [1] * 12)
    words = np.asarray(Image.open(CASES / "bit16" / "cat" / "000.png"))
    assert words.max() > 255
    deep = opened(CASES / "bit16")
    assert np.array_equal(deep.features[0, ..., 0].numpy(), np.rint(words / 257.0).astype(np.uint8))
    with pytest.raises(UserError, match=r"image \d+ \(.*trunc/(cat|dog)/\d+\.png\) can't be decoded") as told:
        opened(CASES / "trunc")
    left = opened(CASES / "trunc", image=ImageSettings(unreadable="leave-out"))
    assert len(left.features) == len(left.labels) == 23
    name = str(told.value).partition("(")[2].partition(")")[0]
    (note,) = [each for notes in _notes(tmp_path) for each in notes]
    assert note.startswith("1 of 24 images can't be read and are left out: image")
    assert name in note
