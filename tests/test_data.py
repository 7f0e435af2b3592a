"""What client k sees: the cache, and a client's part of it. (Local files and the Hub: test_sources.py.)"""

from __future__ import annotations

import json
import os
import string
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from fedham_flwr.core.errors import UserError
from fedham_flwr.data import clients as data_module
from fedham_flwr.data.batches import inputs_and_targets
from fedham_flwr.data.client_data import ClientData
from fedham_flwr.data.clients import open_node, open_partition
from fedham_flwr.data.data_settings import DataSettings, Fractions, Partitioning

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
from fedham_flwr.data import clients as data
from fedham_flwr.data.data_settings import DataSettings

def race(cold, number):
    def decode(source, columns, folder, *_):
        (cold / f"decoded-{number}").touch()
        time.sleep(0.2)
        np.save(folder / "features.npy", np.zeros((9, 2, 2, 1), dtype=np.uint8))
        np.save(folder / "labels.npy", np.arange(9) % 2)
        (folder / "meta.json").write_text('{"classes": ["0", "1"], "kind": "image"}')

    data.decode = decode
    (cold / f"ready-{number}").touch()
    deadline = time.monotonic() + 60
    while len(list(cold.glob("ready-*"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    return data.open_partition(DataSettings(cache_dir=str(cold / "cache")), number, 2).counts()
"""
OTHER_PROCESS = f"""{RACE}
import json, sys
client = data.open_partition(DataSettings(cache_dir=sys.argv[1]), 1, 2)
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
    def fail(source: str, columns: object, folder: Path, *_: object) -> None:
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
    settings = Partitioning("natural")
    with pytest.raises(UserError, match=rf"{column.replace('_', '-')} is 'x', but the digits have only the columns"):
        open_partition(cached(partitioning=settings, **{column: "x"}), 0, 2)


def test_settings_of_text_mean_nothing_to_images(cached: Callable[..., DataSettings]) -> None:
    for given in ({}, {"sequence_length": 7}, {"vocabulary": "ab"}, {"min_characters": 9}):
        assert open_partition(cached(**given), 0, 2).kind == "image"
    root = Path(cached().cache_dir)
    assert len(list(root.glob("data-*/clients-*/indices.npy"))) == 1
    assert len(list(root.rglob("features.npy"))) == 1


# ---- text ----------------------------------------------------------------------------------------------------------

NATURAL = Partitioning("natural")
PLAY = [
    ("HAMLET", "To be, or not to be,"),  # 20 characters
    ("YORICK", "Ha!"),
    ("OPHELIA", "Good my lord, how\ndoes"),  # 22
    ("HAMLET", "that is the question."),  # 21: 42 in all, with the line break
    ("OPHELIA", "your honour?"),  # 12: 35
    ("YORICK", "Ha!"),  # 7
]
HAMLET = "To be, or not to be,\nthat is the question."


@pytest.fixture
def play(tmp_path: Path) -> Path:
    """A file with the speeches of a play, in the order in which they are spoken."""
    path = tmp_path / "play.jsonl"
    path.write_text("".join(json.dumps({"speaker": who, "text": text}) + "\n" for who, text in PLAY))
    return path


@pytest.fixture
def spoken(cached: Callable[..., DataSettings], play: Path) -> Callable[..., DataSettings]:
    """Settings of the play, a client for each speaker, with samples of 5 characters."""
    return lambda **given: cached(
        play, **({"partitioning": NATURAL, "client_column": "speaker", "sequence_length": 5} | given)
    )


def read(client: ClientData, which: str) -> list[str]:
    return ["".join(client.classes[code] for code in row) for row in client.features[client.splits[which]]]


def test_a_speaker_has_the_windows_of_the_speakers_own_text_in_order(spoken: Callable[..., DataSettings]) -> None:
    # 42 characters make (42 - 1) // 5 = 8 windows: test 2, validation 1 (0.8), train 5. OPHELIA's 35 make 6: 2, 1, 3.
    hamlet, ophelia = (open_partition(spoken(), number, 2) for number in range(2))
    assert (hamlet.name, ophelia.name) == ("HAMLET", "OPHELIA")
    assert (hamlet.kind, hamlet.shape) == ("text", (5,))
    assert read(hamlet, "train") == [HAMLET[i : i + 6] for i in range(0, 25, 5)]
    assert read(hamlet, "validation") == [HAMLET[25:31]]
    assert read(hamlet, "test") == [HAMLET[30:36], HAMLET[35:41]]
    assert hamlet.counts() == {"train": 5, "validation": 1, "test": 2}
    assert ophelia.counts() == {"train": 3, "validation": 1, "test": 2}
    assert read(ophelia, "test")[-1] == "Good my lord, how\ndoes\nyour honour?"[25:31]
    assert not set(all_indices(hamlet)) & set(all_indices(ophelia))
    assert hamlet.features.dtype == torch.uint8
    assert hamlet.labels.tolist() == [0] * len(hamlet.features)


def test_classes_are_counted_as_targets(spoken: Callable[..., DataSettings]) -> None:
    hamlet = open_partition(spoken(), 0, 2)
    for which, said in (("train", HAMLET[1:26]), ("validation", HAMLET[26:31]), ("test", HAMLET[31:41])):
        assert hamlet.label_counts(which) == [said.count(character) for character in hamlet.classes]


def test_fewer_samples_are_the_first_ones(spoken: Callable[..., DataSettings]) -> None:
    few = open_partition(spoken(partitioning=Partitioning("natural", samples_per_client=4)), 0, 2)
    assert [read(few, which) for which in ("train", "validation", "test")] == [
        [HAMLET[:6], HAMLET[5:11]],
        [HAMLET[10:16]],
        [HAMLET[15:21]],
    ]


def test_iid_deals_one_text(spoken: Callable[..., DataSettings]) -> None:
    whole = "\n".join(text for _, text in PLAY)
    clients = [open_partition(spoken(partitioning=Partitioning("iid")), number, 3) for number in range(3)]
    assert [client.name for client in clients] == ["0", "1", "2"]
    everything = sorted(i for client in clients for i in all_indices(client))
    assert everything == list(range((len(whole) - 1) // 5))
    assert "".join(read(replace(clients[0], splits={"all": torch.tensor(everything)}), "all")) == "".join(
        whole[5 * i : 5 * i + 6] for i in everything
    )
    for client in clients:
        assert max(client.splits["train"]) < min(client.splits["validation"]) <= max(client.splits["validation"])
        assert max(client.splits["validation"]) < min(client.splits["test"])


def test_owners_with_little_text_are_left_out(spoken: Callable[..., DataSettings]) -> None:
    # Two windows of 5 take 11 characters, which YORICK has not; 40 are more than OPHELIA's 35.
    why = r"5, one sample to train on and one to test"
    with pytest.raises(
        UserError,
        match=r"3 clients were asked for, but of the 3 that client-column names only 2 have at least 11 characters "
        rf"\(with sequence-length={why}\); use fewer clients or a smaller sequence-length",
    ):
        open_partition(spoken(), 0, 3)
    with pytest.raises(
        UserError,
        match=r"2 clients .* the 3 .* only 1 have at least 40 characters \(min-characters=40\); .* smaller min",
    ):
        open_partition(spoken(min_characters=40), 0, 2)
    assert open_partition(spoken(min_characters=40), 0, 1).name == "HAMLET"
    assert open_partition(spoken(sequence_length=3), 2, 3).counts() == {"train": 1, "validation": 0, "test": 1}


def test_a_text_too_short_to_deal(spoken: Callable[..., DataSettings]) -> None:
    # 20 + 3 + 22 + 21 + 12 + 3 characters and 5 line breaks are 86; 9 clients need 2 * 5 * 9 + 1.
    message = r"play\.jsonl has 86 characters, but with sequence-length=5 at least 91 are needed, .* each of 9 clients"
    with pytest.raises(UserError, match=message):
        open_partition(spoken(partitioning=Partitioning("iid")), 0, 9)


@pytest.mark.parametrize("partitioner", ["dirichlet", "pathological", "noniid-1", "noniid-2", "class-owners"])
def test_partitioners_by_label_are_refused(spoken: Callable[..., DataSettings], partitioner: str) -> None:
    message = (
        rf"partitioner is '{partitioner}', which deals by class labels, but a text has none; use natural, files or iid"
    )
    with pytest.raises(UserError, match=message):
        open_partition(spoken(partitioning=Partitioning(partitioner)), 0, 2)


def test_a_node_has_a_text_of_its_own(spoken: Callable[..., DataSettings], play: Path, tmp_path: Path) -> None:
    node = open_node(spoken(), str(play))
    assert (node.name, node.counts()) == ("play.jsonl", {"train": 11, "validation": 2, "test": 4})  # of 17
    assert all_indices(node) == list(range(17))
    short = tmp_path / "short.jsonl"
    short.write_text('{"text": "alas poor"}\n')
    with pytest.raises(
        UserError,
        match=rf"the text of {short} has 9 characters, but with sequence-length=5 at least 11 are needed, for",
    ):
        open_node(spoken(), str(short))
    assert sum(open_node(spoken(sequence_length=4), str(short)).counts().values()) == 2
    with pytest.raises(UserError, match=r"has 9 characters, but with sequence-length=80 at least 161 are needed"):
        open_node(spoken(sequence_length=80), str(short))


def test_other_lengths_and_vocabularies_do_not_read_the_source_again(
    spoken: Callable[..., DataSettings], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = open_partition(spoken(), 0, 2)
    monkeypatch.setattr(data_module, "decode", lambda *_: pytest.fail("decoded again"))
    assert open_partition(spoken(sequence_length=6), 0, 2).shape == (6,)
    other = open_partition(spoken(vocabulary=string.printable[::-1]), 0, 2)
    assert read(other, "train") == read(first, "train")
    assert (99 - other.features).tolist() == first.features.tolist()
    same = open_partition(spoken(vocabulary=string.printable), 0, 2)
    assert same.features.data_ptr() == first.features.data_ptr()
    open_partition(spoken(min_characters=12), 0, 2)
    root = Path(spoken().cache_dir)
    assert len(list(root.glob("data-*/windows-*/features.npy"))) == 3
    assert len(list(root.glob("data-*/windows-*/clients-*/indices.npy"))) == 4


WARM = """
import json, sys
from fedham_flwr.data import clients as data
from fedham_flwr.data.data_settings import DataSettings, Partitioning
settings = DataSettings(sys.argv[1], client_column="speaker", sequence_length=5, cache_dir=sys.argv[2],
                        partitioning=Partitioning("natural"))
client = data.open_partition(settings, 1, 2)
heavy = [name for name in ("datasets", "sklearn", "flwr_datasets", "pyarrow", "PIL", "pandas") if name in sys.modules]
print(json.dumps([heavy, client.name, client.label_counts("train")]))
"""


def test_a_warm_cache_of_text_is_opened_without_libraries(spoken: Callable[..., DataSettings]) -> None:
    ophelia = open_partition(spoken(), 1, 2)
    start = [sys.executable, "-W", "error", "-c", WARM, spoken().dataset, spoken().cache_dir]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(start, env=environment, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == [[], "OPHELIA", ophelia.label_counts("train")]


def test_the_speakers_of_shakespeare(tmp_path: Path, shared_data: Path) -> None:
    if not (shared_data / "shakespeare").is_dir():
        pytest.skip("shakespeare is not there")
    settings = DataSettings(
        str(shared_data / "shakespeare"), client_column="client_id", partitioning=NATURAL, cache_dir=str(tmp_path)
    )
    clients = [open_partition(settings, number, 30) for number in range(30)]
    meta = json.loads(next(tmp_path.glob("data-*/meta.json")).read_text())
    assert len(meta["owners"]) == 1359
    # 3,380,255 train and 870,062 test characters, and a line break between any two of an owner's 30,882 speeches.
    assert sum(meta["characters"]) == 3_380_255 + 870_062 + 30_882 - 1359
    assert clients[0].name == "hamlet/HAMLET"
    sizes = [sum(client.counts().values()) for client in clients]
    assert sizes == [(n - 1) // 80 for n in sorted(meta["characters"], reverse=True)[:30]]
    for client in clients:
        index = torch.cat([client.splits[which] for which in ("train", "validation", "test")])
        assert index.tolist() == list(range(int(index[0]), int(index[0]) + len(index)))
        x, y = inputs_and_targets(client.features[index], client.labels[index])
        assert torch.equal(x.flatten()[1:], y.flatten()[:-1])  # each character is the target of the one before it
        assert sum(client.label_counts("train")) == 80 * client.counts()["train"]
    with pytest.raises(UserError, match=r"100 clients were .* of the 1359 .* only 34 have at least 20000 characters"):
        open_partition(replace(settings, min_characters=20_000), 0, 100)
