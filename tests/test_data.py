"""What client k sees: the cache, and the batches made of it. (Local files and the Hub: test_sources.py.)"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from fedham_flwr import data as data_module
from fedham_flwr.data import ClientData, DataSettings, augment, open_partition, to_float
from fedham_flwr.errors import UserError
from fedham_flwr.partitions import Fractions, Partitioning

ROOT = Path(__file__).resolve().parents[1]
EVERYTHING = Partitioning("pathological", classes_per_client=10)  # all samples of the digits, to everyone


@pytest.fixture
def cached(tmp_path: Path) -> Callable[..., DataSettings]:
    """Settings with a cache of the test's own."""
    return lambda dataset="digits", **given: DataSettings(
        dataset=str(dataset), cache_dir=str(tmp_path / "cache"), **({"partitioning": EVERYTHING} | given)
    )


def all_indices(client: ClientData) -> list[int]:
    return sorted(torch.cat(list(client.splits.values())).tolist())


# ---- digits and the cache ------------------------------------------------------------------------------------------


def test_digits_are_those_of_scikit_learn(cached: Callable[..., DataSettings]) -> None:
    from sklearn.datasets import load_digits

    client = open_partition(cached(), 0, 4)
    digits = load_digits()
    assert client.features.shape == (1797, 8, 8, 1)
    assert client.features.dtype == torch.uint8
    # 0..16 -> 0..255: 16 is 255, 8 is 127.5, rounded to even.
    assert client.features[digits.images == 16].unique().tolist() == [255]
    assert client.features[digits.images == 8].unique().tolist() == [128]
    assert client.labels.tolist() == digits.target.tolist()
    assert client.classes == tuple("0123456789")
    assert client.shape == (1, 8, 8)
    assert client.name == "0"


def test_clients_share_nothing_and_cover_everything(cached: Callable[..., DataSettings]) -> None:
    clients = [open_partition(cached(fractions=Fractions(0.1, 0.2)), number, 4) for number in range(4)]
    assert sorted(i for client in clients for i in all_indices(client)) == list(range(1797))
    for client in clients:
        n = sum(client.counts().values())
        assert client.counts()["test"] == int(0.2 * n + 0.5)
        assert client.counts()["validation"] == int(0.1 * n + 0.5)
    assert [client.name for client in clients] == ["0", "1", "2", "3"]
    for client in clients:
        for which, count in client.counts().items():
            labels = client.labels[client.splits[which]].tolist()
            assert client.label_counts(which) == [labels.count(c) for c in range(10)]
            assert sum(client.label_counts(which)) == count


def test_opening_twice_maps_the_same_pages_and_writing_does_not_reach_the_file(
    cached: Callable[..., DataSettings],
) -> None:
    one, two = open_partition(cached(), 0, 2), open_partition(cached(), 1, 2)
    assert one.features.data_ptr() == two.features.data_ptr()
    (path,) = Path(cached().cache_dir).glob("data-*/features.npy")
    before = path.read_bytes()
    one.features[0] += 1
    assert path.read_bytes() == before


RACE = """
import time
from pathlib import Path
import numpy as np
from fedham_flwr import data

def race(cold, number):
    def decode(source, columns, folder):
        (cold / f"decoded-{number}").touch()
        time.sleep(0.2)
        np.save(folder / "features.npy", np.zeros((9, 2, 2, 1), dtype=np.uint8))
        np.save(folder / "labels.npy", np.arange(9) % 2)
        (folder / "meta.json").write_text('{"classes": ["0", "1"]}')

    data.decode = decode
    (cold / f"ready-{number}").touch()
    deadline = time.monotonic() + 60
    while len(list(cold.glob("ready-*"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    return data.open_partition(data.DataSettings(cache_dir=str(cold / "cache")), number, 2).counts()
"""
OTHER_PROCESS = f"""{RACE}
import json, sys
client = data.open_partition(data.DataSettings(cache_dir=sys.argv[1]), 1, 2)
heavy = [name for name in ("datasets", "sklearn", "flwr_datasets", "pyarrow", "PIL", "pandas") if name in sys.modules]
counts = race(Path(sys.argv[2]), 1)
print(json.dumps([heavy, int(client.features.sum()), client.splits["train"].tolist(), counts]))
"""


def test_two_processes_warm_and_cold(tmp_path: Path, cache_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = open_partition(DataSettings(cache_dir=str(cache_dir)), 1, 2)
    start = [sys.executable, "-W", "error", "-c", OTHER_PROCESS, str(cache_dir), str(tmp_path)]
    other = subprocess.Popen(start, env=os.environ | {"PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE, text=True)
    monkeypatch.setattr(data_module, "decode", data_module.decode)  # put back what `race` replaces
    names: dict[str, Callable[[Path, int], dict[str, int]]] = {}
    exec(RACE, names)
    counts_here = names["race"](tmp_path, 0)
    heavy, total, train, counts_there = json.loads(other.communicate(timeout=60)[0])
    assert heavy == []  # a warm cache is mapped without the libraries that decode
    assert total == int(here.features.sum())
    assert train == here.splits["train"].tolist()
    # Both came to a cold cache together, and one of them decoded. Of 9 samples in 2 classes, 5 + 4, the clients have
    # 3 + 2 and 2 + 2: test 1, validation 1 (0.4 or 0.5), train the rest.
    assert [counts_here, counts_there] == [
        {"train": 3, "validation": 1, "test": 1},
        {"train": 2, "validation": 1, "test": 1},
    ]
    assert len(list(tmp_path.glob("decoded-*"))) == 1
    assert not list((tmp_path / "cache").rglob("*.partial"))


def test_a_folder_left_half_written_is_not_read(
    cached: Callable[..., DataSettings], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(source: str, columns: object, folder: Path) -> None:
        (folder / "features.npy").write_bytes(b"half")
        raise UserError("no more")

    with monkeypatch.context() as patch:
        patch.setattr(data_module, "decode", fail)
        with pytest.raises(UserError, match="no more"):
            open_partition(cached(), 0, 2)
    assert not list(Path(cached().cache_dir).glob("*data-*/features.npy"))
    # A process that is killed leaves the folder under its temporary name.
    (lock,) = Path(cached().cache_dir).glob("data-*.lock")
    left = lock.with_name(f".{lock.stem}.partial")
    left.mkdir()
    (left / "features.npy").write_bytes(b"half")
    assert len(open_partition(cached(), 0, 2).features) == 1797
    assert not left.exists()


def test_each_partitioning_has_a_folder_of_its_own(cached: Callable[..., DataSettings]) -> None:
    open_partition(cached(), 0, 2)
    for clients, given in ((3, {}), (2, {"fractions": Fractions(0.2, 0.2)}), (2, {"partitioning": Partitioning()})):
        open_partition(cached(**given), 0, clients)
    root = Path(cached().cache_dir)
    assert len(list(root.glob("data-*/features.npy"))) == 1
    assert len(list(root.glob("data-*/clients-*/indices.npy"))) == 4


def test_a_cache_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(
        UserError, match=r"the cache folder .*file/cache can't be written \(Not a directory\); set cache-d"
    ):
        open_partition(DataSettings(cache_dir=str(tmp_path / "file" / "cache")), 0, 2)


def test_the_cache_is_in_the_users_cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    open_partition(DataSettings(), 0, 2)
    assert (tmp_path / "fedham-flwr").is_dir()


@pytest.mark.parametrize("number", [-1, 2])
def test_a_partition_that_is_not_there(cached: Callable[..., DataSettings], number: int) -> None:
    with pytest.raises(UserError, match=rf"partition {number} was asked for, but with 2 clients they go from 0 to 1"):
        open_partition(cached(), number, 2)


@pytest.mark.parametrize("column", ["feature_column", "label_column", "client_column"])
def test_digits_have_two_columns(cached: Callable[..., DataSettings], column: str) -> None:
    how = Partitioning("natural")
    with pytest.raises(UserError, match=rf"{column.replace('_', '-')} is 'x', but the digits have only the columns"):
        open_partition(cached(partitioning=how, **{column: "x"}), 0, 2)


# ---- batches -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(1, 8, 8, 1), (2, 4, 6, 3)])
def test_to_float(shape: tuple[int, ...]) -> None:
    batch = (torch.arange(int(np.prod(shape))) * 5 % 256).to(torch.uint8).reshape(shape)
    x = to_float(batch)
    assert x.dtype == torch.float32
    assert x.is_contiguous(memory_format=torch.channels_last)
    expected = batch.numpy().transpose(0, 3, 1, 2) / 127.5 - 1
    assert np.abs(x.numpy() - expected).max() < 1e-7
    assert to_float(torch.tensor([[[[0]], [[255]]]], dtype=torch.uint8)).flatten().tolist() == [-1.0, 1.0]


@pytest.mark.parametrize(("height", "width", "channels", "pad"), [(8, 6, 1, 1), (32, 32, 3, 4), (40, 16, 2, 4)])
def test_augment_against_a_loop(height: int, width: int, channels: int, pad: int) -> None:
    batch = to_float((torch.arange(6 * height * width * channels) % 251 + 1).to(torch.uint8).view(6, height, width, -1))
    moved = augment(batch, torch.Generator().manual_seed(1))
    generator = torch.Generator().manual_seed(1)
    shifts = torch.randint(0, 2 * pad + 1, (2, 6, 1), generator=generator).squeeze(2).T - pad
    mirrored = torch.randint(0, 2, (6, 1), generator=generator).bool().flatten()
    expected = torch.full_like(batch, -1)
    for i in range(6):
        for y in range(height):
            for x in range(width):
                from_y = y + int(shifts[i, 0])
                from_x = (width - 1 - x if mirrored[i] else x) + int(shifts[i, 1])
                if 0 <= from_y < height and 0 <= from_x < width:
                    expected[i, :, y, x] = batch[i, :, from_y, from_x]
    assert torch.equal(moved, expected)
    assert moved.is_contiguous(memory_format=torch.channels_last)
    assert 0 < int(mirrored.sum()) < 6
    assert len(shifts.unique(dim=0)) > 1
