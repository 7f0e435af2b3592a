"""Local files and the Hub: which columns are found, how they are decoded, and what is said when they don't fit."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from fedham_flwr.core.errors import UserError
from fedham_flwr.data import sources
from fedham_flwr.data.client_data import ClientData
from fedham_flwr.data.clients import open_node, open_partition
from fedham_flwr.data.data_settings import DataSettings, Partitioning
from fedham_flwr.data.kinds import image_reading as images

EVERYTHING = Partitioning("iid")


def picture(value: int, *, mode: str = "RGB", size: tuple[int, int] = (6, 4)) -> dict[str, object]:
    """A PNG, 6 wide and 4 high, whose pixels all differ: value, value + 1, ..."""
    from PIL import Image

    channels = {"L": 1, "RGB": 3}[mode]
    pixels = (value + np.arange(size[0] * size[1] * channels)) % 256
    shape = (size[1], size[0]) if mode == "L" else (size[1], size[0], 3)
    file = io.BytesIO()
    Image.fromarray(pixels.astype(np.uint8).reshape(shape)).save(file, "PNG")
    return {"bytes": file.getvalue(), "path": None}


def make_table(columns: dict[str, list[object]], **kinds: object) -> object:
    """A `datasets.Dataset` with images under "picture" and the kinds given for other columns."""
    import datasets

    table = datasets.Dataset.from_dict(columns)
    for name, kind in ({"picture": datasets.Image()} | kinds).items():
        if name in columns:
            table = table.cast_column(name, kind)
    return table


def class_label(*names: str) -> object:
    import datasets

    return datasets.ClassLabel(names=list(names))


@pytest.fixture
def cached(tmp_path: Path) -> Callable[..., DataSettings]:
    """Settings with a cache of the test's own."""
    return lambda dataset="digits", **given: DataSettings(
        dataset=str(dataset), cache_dir=str(tmp_path / "cache"), **({"partitioning": EVERYTHING} | given)
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """8 train rows (values 0, 10, ... 70) and 4 test rows (100, ... 130) of cats and dogs, alternating."""
    path = tmp_path / "pets"
    path.mkdir()
    for name, values in (("train", range(0, 80, 10)), ("test", range(100, 140, 10))):
        labels = [i % 2 for i in range(len(values))]
        where = ["oslo" if i < 3 else "bergen" for i in range(len(values))]
        columns = {"picture": [picture(value) for value in values], "pet": labels, "city": where}
        make_table(columns, pet=class_label("cat", "dog")).to_parquet(path / f"{name}.parquet")
    return path


def write_rows(path: Path, columns: dict[str, list[object]], **kinds: object) -> Path:
    make_table(columns, **kinds).to_parquet(path)
    return path


def all_indices(client: ClientData) -> list[int]:
    return sorted(torch.cat(list(client.splits.values())).tolist())


# ---- local files ---------------------------------------------------------------------------------------------------


def test_a_folder_is_read_whole_train_first(cached: Callable[..., DataSettings], folder: Path) -> None:
    client = open_partition(cached(folder), 0, 2)
    assert client.features.shape == (12, 4, 6, 3)
    assert client.features[:, 0, 0, 0].tolist() == [0, 10, 20, 30, 40, 50, 60, 70, 100, 110, 120, 130]
    assert client.features[9].flatten().tolist() == list(range(110, 110 + 72))  # rows, columns, channels
    assert client.labels.tolist() == [0, 1] * 6
    assert client.classes == ("cat", "dog")
    assert client.shape == (3, 4, 6)
    # What the library copies for itself is gone.
    (built,) = Path(cached().cache_dir).glob("data-*/")
    assert {path.name for path in built.iterdir() if path.is_file()} >= {"features.npy", "labels.npy", "meta.json"}
    assert not list(built.glob("**/*.arrow"))


def test_the_key_follows_the_content(cached: Callable[..., DataSettings], folder: Path, tmp_path: Path) -> None:
    memo = tmp_path / "digests.json"
    before = sources.content_key(str(folder), memo)
    moved = folder.rename(tmp_path / "moved")
    assert sources.content_key(str(moved), memo) == before
    write_rows(moved / "test.parquet", {"picture": [picture(1)], "pet": [1], "city": ["x"]}, pet=class_label("a", "b"))
    assert sources.content_key(str(moved), memo) != before


def test_files_are_digested_once(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    memo = tmp_path / "digests.json"
    before = sources.content_key(str(folder), memo)
    with monkeypatch.context() as patch:
        patch.setattr(sources.hashlib, "file_digest", lambda *_: pytest.fail("read again"))
        assert sources.content_key(str(folder), memo) == before
    memo.write_text("{broken")
    assert sources.content_key(str(folder), memo) == before


def test_one_file_of_grey_images_with_text_labels(cached: Callable[..., DataSettings], tmp_path: Path) -> None:
    columns = {"picture": [picture(i, mode="L") for i in range(8)], "label": ["zebra", "ant"] * 4}
    client = open_partition(cached(write_rows(tmp_path / "zoo.parquet", columns)), 0, 2)
    assert client.features.shape == (8, 4, 6, 1)
    assert client.classes == ("ant", "zebra")
    assert client.labels.tolist() == [1, 0] * 4


def test_one_coloured_image_makes_all_of_them_coloured(
    cached: Callable[..., DataSettings], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(images, "BLOCK", 2)  # the colour comes when a grey block has been written
    rows = [picture(i, mode="RGB" if i == 5 else "L") for i in range(8)]
    path = write_rows(tmp_path / "zoo.parquet", {"picture": rows, "label": [7, 7, 9, 9] * 2})
    client = open_partition(cached(path), 0, 2)
    assert client.features.shape == (8, 4, 6, 3)
    assert client.features[2, 0, :2].tolist() == [[2, 2, 2], [3, 3, 3]]
    assert client.features[5, 0, :2].tolist() == [[5, 6, 7], [8, 9, 10]]
    assert client.classes == ("7", "9")


def test_natural_clients_are_named_by_the_column(cached: Callable[..., DataSettings], folder: Path) -> None:
    given = {"partitioning": Partitioning("natural"), "client_column": "city"}
    # Oslo has the first three rows of either file, Bergen the other five and one.
    clients = [open_partition(cached(folder, **given), number, 2) for number in range(2)]
    assert {client.name: all_indices(client) for client in clients} == {
        "bergen": [3, 4, 5, 6, 7, 11],
        "oslo": [0, 1, 2, 8, 9, 10],
    }
    with pytest.raises(UserError, match=r"3 clients were asked for, but client-column names only 2"):
        open_partition(cached(folder, **given), 0, 3)
    with pytest.raises(UserError, match=r"client-column is 'town', but the columns are picture \(Image\), pet"):
        open_partition(cached(folder, **(given | {"client_column": "town"})), 0, 2)


def test_a_node_has_all_of_its_data(cached: Callable[..., DataSettings], folder: Path) -> None:
    client = open_node(cached("unused"), str(folder))
    assert client.name == "pets"
    assert len(client.splits["train"]) > 0  # how many are decided by what is in the files
    assert all_indices(client) == list(range(12))
    again = open_node(cached("unused"), str(folder))
    assert torch.equal(client.splits["test"], again.splits["test"])
    digits = open_node(cached("unused"), "digits")
    assert sum(digits.counts().values()) == 1797


def test_a_path_that_is_not_there(cached: Callable[..., DataSettings], tmp_path: Path) -> None:
    missing = tmp_path / "gone"
    with pytest.raises(UserError, match=rf"dataset is '{missing}', but there is no file or folder {missing}; give"):
        open_partition(cached(missing), 0, 2)
    with pytest.raises(
        UserError, match=rf"dataset is '\./gone', but there is no file or folder {Path('gone').absolute()}"
    ):
        open_partition(cached("./gone"), 0, 2)


BAD_TABLES = {
    "two label columns": (
        {"picture": [picture(1)] * 4, "fine": [0, 1, 0, 1], "coarse": [0, 0, 0, 0]},
        {"fine": ("a", "b"), "coarse": ("c",)},
        {},
        r"set label-column: the data set has 2 columns of kind ClassLabel, among picture \(Image\), fine",
    ),
    "no label column": (
        {"picture": [picture(1)] * 4},
        {},
        {},
        r"set label-column: the data set has no column of kind ClassLabel, so that it must be named, one of picture",
    ),
    "no image column": (
        {"words": ["a"] * 4, "label": [0, 1, 0, 1]},
        {},
        {},
        r"set feature-column: the data set has no column of kind Image, so .* one of words \(.*string\), label",
    ),
    "a kind of feature not supported": (
        {"size": [{"a": 0.5}] * 4, "label": [0, 1, 0, 1]},
        {},
        {"feature_column": "size"},
        r"feature-column names 'size' of kind dict, but must name one column of Image, string, large_string",
    ),
    "a column called text that holds none": (
        {"text": [1, 2, 3, 4], "label": [0, 1, 0, 1]},
        {},
        {},
        r"set feature-column: the data set has neither images nor a column text; .* some of text \(int64\)\.$",
    ),
    "labels of a text": (
        {"text": ["a"] * 4, "label": [0, 1, 0, 1]},
        {},
        {"label_column": "label", "target": "next-token"},
        r"label-column is 'label', but target is next-token, which takes no labels; drop it",
    ),
    "a text that is empty": (
        {"text": ["a", None, "b", None]},
        {},
        {},
        r"feature-column 'text' has 2 empty rows, but every row needs a value",
    ),
    "a column that is not there": (
        {"picture": [picture(1)] * 4, "label": [0, 1, 0, 1]},
        {},
        {"label_column": "species"},
        r"label-column is 'species', but the columns are picture \(Image\), label \(int64\)",
    ),
    "labels that are no classes": (
        {"picture": [picture(1)] * 4, "label": [0.5, 1.5, 0.5, 1.5]},
        {},
        {},
        r"label-column 'label' is of kind float64, but must hold integers, texts or class labels",
    ),
    "a label that is empty": (
        {"picture": [picture(1)] * 4, "label": ["a", None, "a", "b"]},
        {},
        {},
        r"label-column 'label' has 1 empty rows, but every row needs a value",
    ),
    "a class label of -1": (
        {"picture": [picture(1)] * 4, "label": [0, -1, 0, 1]},
        {"label": ("a", "b")},
        {},
        r"label-column 'label' has 1 empty rows, but every row needs a value; the first is row 1; table\.unlabelled",
    ),
    "images of different sizes": (
        {"picture": [picture(1), picture(1), picture(1, size=(5, 4)), picture(1)], "label": [0, 1, 0, 1]},
        {},
        {},
        r"image 2 is 5x4 pixels, but image 0 is 6x4: set image-size, the pixels of the square",
    ),
    "an image that is broken": (
        {"picture": [picture(1), {"bytes": b"not an image", "path": None}], "label": [0, 1]},
        {},
        {},
        r"image 1 can't be decoded: cannot identify image file",
    ),
}


@pytest.mark.parametrize("case", BAD_TABLES)
def test_tables_that_do_not_fit(cached: Callable[..., DataSettings], tmp_path: Path, case: str) -> None:
    columns, kinds, given, message = BAD_TABLES[case]
    path = tmp_path / "rows.parquet"
    write_rows(path, columns, **{name: class_label(*names) for name, names in kinds.items()})
    with pytest.raises(UserError, match=message):
        open_partition(cached(path, **given), 0, 1)


def test_a_data_set_with_images_is_one_of_images(cached: Callable[..., DataSettings], tmp_path: Path) -> None:
    columns = {"picture": [picture(i) for i in range(4)], "text": ["a"] * 4, "label": [0, 1] * 2}
    client = open_partition(cached(write_rows(tmp_path / "rows.parquet", columns)), 0, 1)
    assert client.kind == "image"


def test_files_that_cannot_be_read(cached: Callable[..., DataSettings], tmp_path: Path) -> None:
    (tmp_path / "notes.doc").write_text("x")
    with pytest.raises(UserError, match=r"dataset is the file .*notes\.doc, but only \.parquet, .* can be read"):
        open_partition(cached(tmp_path / "notes.doc"), 0, 2)
    (tmp_path / "rows.parquet").write_text("x")
    with pytest.raises(UserError, match=r"dataset .*rows\.parquet can't be read: "):
        open_partition(cached(tmp_path / "rows.parquet"), 0, 2)


# ---- the Hub -------------------------------------------------------------------------------------------------------


def hub(monkeypatch: pytest.MonkeyPatch, answer: Callable[[], object]) -> list[str]:
    """Let the Hub give this answer; returns the list of the names asked for."""
    import datasets

    asked: list[str] = []

    def load_dataset(path: str, **_: object) -> object:
        asked.append(path)
        return answer()

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.setattr(sources, "_has_network", lambda: True)
    return asked


def test_the_hub_is_asked_once(cached: Callable[..., DataSettings], monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    def answer() -> object:
        table = make_table({"picture": [picture(i) for i in range(6)], "label": [0, 1, 2] * 2})
        return datasets.DatasetDict({"test": table.select([4, 5]), "train": table.select(range(4))})

    asked = hub(monkeypatch, answer)
    clients = [open_partition(cached("someone/pets"), number, 2) for number in range(2)]
    assert asked == ["someone/pets"]
    assert clients[0].features[:, 0, 0, 0].tolist() == [0, 1, 2, 3, 4, 5]
    assert clients[0].classes == ("0", "1", "2")


def failing(error: Exception) -> Callable[[], object]:
    def answer() -> object:
        raise error

    return answer


def test_a_hub_out_of_reach(cached: Callable[..., DataSettings], monkeypatch: pytest.MonkeyPatch) -> None:
    hub(monkeypatch, failing(ConnectionError("Couldn't reach 'someone/pets' on the Hub\nmore")))
    expected = (
        r"dataset is 'someone/pets', but the Hugging Face Hub cannot be reached \(Couldn't reach 'someone/pets' on the "
        r"Hub\), and .*someone/pets doesn't exist; a local folder or dataset=\"digits\" works without network"
    )
    with pytest.raises(UserError, match=expected):
        open_partition(cached("someone/pets"), 0, 2)


def test_a_misspelt_file_is_asked_back_and_the_hub_is_not(
    cached: Callable[..., DataSettings], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "stays.csv").write_text("a,label\n1,0\n")
    with pytest.raises(UserError, match=r"no file or folder .*stay.csv \(did you mean stays.csv\?\); give a path"):
        open_partition(cached("stay.csv"), 0, 2)


def test_without_network_the_hub_is_not_tried_again_and_again(
    cached: Callable[..., DataSettings], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def unknown(*host: object) -> None:
        asked.append(host)
        raise OSError("Name or service not known")

    monkeypatch.setattr("urllib.request.getproxies", dict)
    monkeypatch.setattr("socket.getaddrinfo", unknown)
    with pytest.raises(UserError, match=r"dataset is 'someone/pets', but the Hugging Face Hub cannot be reached"):
        open_partition(cached("someone/pets"), 0, 2)
    assert len(asked) == 1


def test_a_name_the_hub_does_not_know(cached: Callable[..., DataSettings], monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    hub(monkeypatch, failing(datasets.exceptions.DatasetNotFoundError("no")))
    with pytest.raises(UserError, match=r"dataset is 'pets', but the Hub has no such data set \(or it is private\)"):
        open_partition(cached("pets"), 0, 2)
    hub(monkeypatch, failing(ValueError("Config name is missing.")))
    with pytest.raises(UserError, match=r"dataset 'pets' can't be loaded from the Hub: Config name is missing\."):
        open_partition(cached("pets"), 0, 2)


def test_splits_without_rows_or_with_other_columns(
    cached: Callable[..., DataSettings], monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets

    table = make_table({"picture": [picture(1)], "label": [0]})
    hub(monkeypatch, lambda: datasets.DatasetDict({"train": table.select([])}))
    with pytest.raises(UserError, match=r"dataset 'empty' has no rows"):
        open_partition(cached("empty"), 0, 2)
    other = make_table({"picture": ["x"], "label": ["y"]}, picture=datasets.Value("string"))
    hub(monkeypatch, lambda: datasets.DatasetDict({"train": table, "test": other}))
    with pytest.raises(UserError, match=r"'odd'.* has splits of different columns"):
        open_partition(cached("odd"), 0, 2)


# ---- real data -----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_cifar10_is_decoded_exactly(cached: Callable[..., DataSettings], shared_data: Path) -> None:
    import pyarrow.parquet
    from PIL import Image

    if not (shared_data / "cifar10").is_dir():
        pytest.skip("cifar10 is not there")
    client = open_partition(cached(shared_data / "cifar10"), 0, 20)
    test = pyarrow.parquet.read_table(shared_data / "cifar10" / "test.parquet")
    train = pyarrow.parquet.read_table(shared_data / "cifar10" / "train.parquet", columns=["label"])
    assert client.features.shape == (60000, 32, 32, 3)
    assert client.labels.tolist() == train["label"].to_pylist() + test["label"].to_pylist()
    assert client.classes[:3] == ("airplane", "automobile", "bird")
    for row in (0, 1234, 9999):
        pixels = np.asarray(Image.open(io.BytesIO(test["image"][row].as_py()["bytes"])))
        assert np.array_equal(client.features[50000 + row].numpy(), pixels)
