"""Damaged files of the cache: noticed, set aside, made anew, and said in one line; the data are what they were."""

from __future__ import annotations

import errno
import json
import os
import shutil
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from fedham_flwr.core.errors import UserError
from fedham_flwr.data import cache_files
from fedham_flwr.data.cache import build
from fedham_flwr.data.cache_files import start_of
from fedham_flwr.data.clients import open_partition
from fedham_flwr.data.data_settings import DataSettings, Fractions, Partitioning

ROWS = 12
Damage = Callable[[Path], object]


def cut_to(share: float) -> Damage:
    return lambda file: os.truncate(file, int(file.stat().st_size * share))


def flip(share: float) -> Damage:
    """One bit of one byte."""

    def damage(file: Path) -> None:
        content = bytearray(file.read_bytes())
        content[min(int(len(content) * share), len(content) - 1)] ^= 1
        file.write_bytes(bytes(content))

    return damage


DAMAGES: dict[str, Damage] = {
    "gone": Path.unlink,
    "empty": cut_to(0),
    "cut-in-its-head": cut_to(0.1),
    "half": cut_to(0.5),
    "one-byte-less": lambda file: os.truncate(file, file.stat().st_size - 1),
    "first-byte": flip(0),
    "a-byte-in-the-middle": flip(0.5),
    "last-byte": flip(1),
}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A table of two columns, and its cache as it was written."""
    import datasets

    folder = tmp_path_factory.mktemp("site")
    numbers = {"age": range(30, 30 + ROWS), "dose": [row % 5 for row in range(ROWS)], "label": [0, 1] * (ROWS // 2)}
    datasets.Dataset.from_dict({name: [*column] for name, column in numbers.items()}).to_parquet(
        folder / "rows.parquet"
    )
    opened(folder)
    shutil.copytree(folder / "cache", folder / "whole")
    return folder


def opened(folder: Path) -> list[Any]:
    """All that a client has, of a simulation of two."""
    settings = DataSettings(
        dataset=str(folder / "rows.parquet"),
        feature_column="age dose",
        label_column="label",
        partitioning=Partitioning("iid"),
        fractions=Fractions(0.0, 0.25),
        cache_dir=str(folder / "cache"),
    )
    client = open_partition(settings, 1, 2)
    assert client.scaling is not None
    splits = {name: numbers.tolist() for name, numbers in client.splits.items()}
    rows = [number for numbers in splits.values() for number in numbers]
    return [client.features[rows].tolist(), client.labels.tolist(), splits, client.classes, client.scaling.mean]


FILES = [
    *[f"data/{name}" for name in ("features.npy", "labels.npy", "row-hashes.npy", "meta.json", "files.json")],
    *[f"clients/{name}" for name in ("indices.npy", "features.npy", "scaling.npy", "meta.json", "files.json")],
    "digests.json",
]


def restored(site: Path) -> Path:
    """The cache as it was written, with all times."""
    shutil.rmtree(site / "cache")
    shutil.copytree(site / "whole", site / "cache")
    return site / "cache"


def place(cache: Path, file: str) -> Path:
    (data,) = cache.glob("data-*/")
    (dealt,) = data.glob("clients-*/")
    return {"data": data, "clients": dealt}.get(file.partition("/")[0], cache) / file.rpartition("/")[2]


def test_every_file_of_the_cache_is_damaged_below(site: Path) -> None:
    there = {each.name for each in restored(site).rglob("*") if each.is_file() and each.suffix != ".lock"}
    assert there == {Path(file).name for file in FILES}


def sweep(site: Path, caplog: pytest.LogCaptureFixture, files: list[str], damages: dict[str, Damage]) -> int:
    """How many times a file was damaged, noticed, set aside and made anew: once for each file and damage."""
    whole, mended = opened(site), 0
    for file in files:
        for name, damage in damages.items():
            cache = restored(site)
            damage(place(cache, file))
            caplog.clear()
            assert opened(site) == whole, (file, name)
            said = [record.getMessage() for record in caplog.records]
            if file == "digests.json":
                assert len(said) == (name != "gone"), (file, name, said)  # else it is as on the first day
                assert all("digests.json are damaged: they are made anew" in line for line in said)
                mended += 1
                continue
            assert len(said) == 1, (file, name, said)
            assert f"are damaged ({Path(file).name}" in said[0]
            assert "made anew" in said[0]
            assert len([*cache.rglob("damaged-*/")]) == 1
            caplog.clear()
            assert opened(site) == whole
            assert not caplog.records
            mended += 1
    return mended


def test_damage_is_noticed_set_aside_and_mended(site: Path, caplog: pytest.LogCaptureFixture) -> None:
    files = ["data/labels.npy", "clients/indices.npy", "digests.json"]
    assert sweep(site, caplog, files, {"half": DAMAGES["half"]}) == 3


@pytest.mark.slow
def test_any_damage_of_any_file_is_noticed_set_aside_and_mended(site: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert sweep(site, caplog, FILES, DAMAGES) == len(FILES) * len(DAMAGES)


# ---- one folder ------------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder of the cache with a file that is not small."""
    return filled(tmp_path / "data-1")


def filled(folder: Path, fills: list[Path] | None = None) -> Path:
    def fill(partial: Path) -> None:
        if fills is not None:
            fills.append(partial)
            time.sleep(0.05)
        (partial / "features.npy").write_bytes(bytes(cache_files.SMALL + 1))
        (partial / "meta.json").write_text("{}")

    return build(folder, fill)


def rot(file: Path) -> None:
    """Another bit, and no trace of it."""
    stat = file.stat()
    flip(0.5)(file)
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def test_bits_that_rot_are_noticed_when_a_run_starts(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    with start_of("1"):
        filled(folder)
    rot(folder / "features.npy")
    filled(folder)
    with start_of("1"):
        filled(folder)
    assert not caplog.records  # since everything was read in this run
    with start_of("2"):
        filled(folder)
    assert "features.npy has other content than was written" in caplog.text
    assert not any((folder / "features.npy").read_bytes())
    assert any((folder.parent / "damaged-data-1" / "features.npy").read_bytes())


def test_a_large_file_is_read_once_in_a_run(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    digest = cache_files.digest
    monkeypatch.setattr(cache_files, "digest", lambda file: read.append(file.name) or digest(file))
    for run in ("", "", "7", "7", "8"):
        with start_of(run):
            filled(folder)
    assert read.count("features.npy") == 2


def test_a_cache_that_was_copied_is_whole(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    before = (folder / cache_files.LIST).read_text()
    os.utime(folder / "features.npy", ns=(1, 1))
    filled(folder)
    assert not caplog.records
    after = json.loads((folder / cache_files.LIST).read_text())
    assert after["files"]["features.npy"][1] == 1
    assert after["files"]["features.npy"][2] == json.loads(before)["files"]["features.npy"][2]
    assert cache_files.fault(folder) == ""


def test_of_many_who_find_damage_one_mends_it(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    os.truncate(folder / "features.npy", 9)
    fills: list[Path] = []
    with ThreadPoolExecutor(8) as pool:
        found = [*pool.map(lambda _: filled(folder, fills), range(8))]
    assert found == [folder] * 8
    assert len(fills) == len(caplog.records) == 1
    assert cache_files.fault(folder, whole=True) == ""


def test_the_latest_damaged_folder_is_kept(folder: Path) -> None:
    for size in (9, 8):
        os.truncate(folder / "features.npy", size)
        filled(folder)
    assert sorted(each.name for each in folder.parent.glob("*/")) == ["damaged-data-1", "data-1"]
    assert (folder.parent / "damaged-data-1" / "features.npy").stat().st_size == 8


def test_a_full_disk_leaves_no_half_folder(tmp_path: Path) -> None:
    def fill(partial: Path) -> None:
        (partial / "features.npy").write_bytes(b"half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(
        UserError, match=r"the cache folder .* can't be written \(No space left on device\); set cache-dir"
    ):
        build(tmp_path / "data-1", fill)
    assert not [*tmp_path.glob("*data-1*/")]


# ---- a run -----------------------------------------------------------------------------------------------------------


def test_a_run_on_damaged_labels_is_that_on_whole_ones(
    federate: Callable[..., Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    few: dict[str, Any] = {"num-server-rounds": 1, "strategy": "fedavg", "cache-dir": str(tmp_path / "cache")}
    states = [federate(clients=2, **few).state]
    (labels,) = (tmp_path / "cache").glob("data-*/labels.npy")
    labels.write_bytes(labels.read_bytes()[:-8] + bytes(8))
    states.append(federate(clients=2, **few).state)
    assert "labels.npy has other content than was written" in caplog.text
    assert states[0].keys() == states[1].keys()
    assert all(states[0][name].equal(states[1][name]) for name in states[0])
