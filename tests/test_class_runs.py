"""Class owners and class tables from the settings on: cache, and whole runs. (Amounts: test_class_tables.py.)"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedham_flwr.core.errors import UserError
from fedham_flwr.data.client_data import ClientData
from fedham_flwr.data.clients import open_partition
from fedham_flwr.data.data_settings import DataSettings, Partitioning
from fedham_flwr.settings import Value

Dealt = Callable[..., list[ClientData]]

DIGITS = np.array([178, 182, 177, 183, 181, 182, 181, 179, 174, 180])  # scikit-learn's, 1797 in all
TABLE = """
[clients.small]
0 = 20
1 = 30
[clients."Ward 3, Zürich"]
3 = 1.0
0 = 0.5
[clients.middle]
0 = 0.25
9 = 100
"""
# Of 178 zeros a half is 89 and a quarter 44 (44.5); there are 183 threes.
HELD = [
    ("Ward 3, Zürich", [89, 0, 0, 183, 0, 0, 0, 0, 0, 0]),
    ("middle", [44, 0, 0, 0, 0, 0, 0, 0, 0, 100]),
    ("small", [20, 30, 0, 0, 0, 0, 0, 0, 0, 0]),
]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A table of three clients for the digits."""
    path = tmp_path / "table.toml"
    path.write_text(TABLE)
    return path


@pytest.fixture
def by_table(tmp_path: Path) -> DataSettings:
    """Settings with a cache of the test's own, but without a table."""
    return DataSettings(cache_dir=str(tmp_path / "cache"), partitioning=Partitioning("class-table"))


def deal(settings: DataSettings, path: Path, clients: int = 3, **given: Any) -> list[ClientData]:
    chosen = replace(settings.partitioning, class_table=str(path), **given)
    return [open_partition(replace(settings, partitioning=chosen), number, clients) for number in range(clients)]


def held(clients: list[ClientData]) -> list[tuple[str, list[int]]]:
    """Names, and samples of each class in all splits together."""
    return [(c.name, np.sum([c.label_counts(which) for which in c.splits], axis=0).tolist()) for c in clients]


def numbers(clients: list[ClientData]) -> list[list[int]]:
    """The samples of each client."""
    return [sorted(i for indices in c.splits.values() for i in indices.tolist()) for c in clients]


def dealings(settings: DataSettings) -> int:
    return len(list(Path(settings.cache_dir).glob("data-*/clients-*/indices.npy")))


# ---- the cache -------------------------------------------------------------------------------------------------------


def test_clients_have_what_the_table_says_and_their_names_the_largest_first(by_table: DataSettings, path: Path) -> None:
    clients = deal(by_table, path)
    assert held(clients) == HELD
    everything = [i for client in numbers(clients) for i in client]
    assert len(set(everything)) == len(everything) == 272 + 144 + 50


def test_the_seed_deals_other_samples_in_the_same_numbers(by_table: DataSettings, path: Path) -> None:
    one, other = deal(by_table, path, seed=1), deal(by_table, path, seed=2)
    assert held(one) == held(other) == HELD
    assert numbers(one) != numbers(other)


def test_of_a_table_too_at_most_so_many_samples_are_kept(by_table: DataSettings, path: Path) -> None:
    # 20 : 30, 89 : 183 and 44 : 100 in 40 samples are 16 : 24, 13.1 : 26.9 and 12.2 : 27.8. All have 40 then, and keep
    # the order of the table.
    assert [counts for _, counts in held(deal(by_table, path, samples_per_client=40))] == [
        [16, 24, 0, 0, 0, 0, 0, 0, 0, 0],
        [13, 0, 0, 27, 0, 0, 0, 0, 0, 0],
        [12, 0, 0, 0, 0, 0, 0, 0, 0, 28],
    ]


def test_a_table_of_the_same_content_is_dealt_once_wherever_it_lies(by_table: DataSettings, path: Path) -> None:
    first = deal(by_table, path)
    other = path.with_name("other.toml")
    other.write_text("# the same clients and amounts\n" + TABLE.replace("3 = 1.0\n0 = 0.5", "0 = 0.50\n3 = 1.0"))
    assert numbers(deal(by_table, other)) == numbers(first)
    assert dealings(by_table) == 1


@pytest.mark.parametrize(
    ("old", "new", "place", "wanted"),
    [
        ("1 = 30", "1 = 31", 2, ("small", [20, 31, 0, 0, 0, 0, 0, 0, 0, 0])),
        ("3 = 1.0", "3 = 1", 1, ("Ward 3, Zürich", [89, 0, 0, 1, 0, 0, 0, 0, 0, 0])),
        ("middle", "centre", 1, ("centre", HELD[1][1])),
    ],
)
def test_a_table_that_was_edited_is_dealt_anew(
    by_table: DataSettings, path: Path, old: str, new: str, place: int, wanted: tuple[str, list[int]]
) -> None:
    deal(by_table, path)
    times = path.stat()
    path.write_text(TABLE.replace(old, new))
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))  # it is the content that counts, not the time
    assert held(deal(by_table, path))[place] == wanted
    assert dealings(by_table) == 2


def test_a_fault_leaves_nothing_behind(by_table: DataSettings, path: Path) -> None:
    with pytest.raises(UserError, match=r"table\.toml has 3 clients, but the simulation has 2"):
        deal(by_table, path, clients=2)
    path.write_text("[clients.A]\nseven = 3\n")
    with pytest.raises(UserError, match=r"gives client 'A' the class 'seven', but the classes are 0, 1, 2, .*, 9\.$"):
        deal(by_table, path, clients=1)
    assert dealings(by_table) == 0
    path.unlink()
    with pytest.raises(UserError, match=r"table\.toml can't be read \(No such file or directory\)"):
        deal(by_table, path)


def test_equal_clients_keep_the_order_of_the_table(by_table: DataSettings, path: Path) -> None:
    path.write_text("".join(f"[clients.{name}]\n{digit} = 9\n" for name, digit in (("b", 4), ("c", 2), ("a", 7))))
    assert [(name, int(np.argmax(counts))) for name, counts in held(deal(by_table, path))] == [
        ("b", 4),
        ("c", 2),
        ("a", 7),
    ]


def test_a_text_has_no_classes_to_deal_by(by_table: DataSettings, path: Path) -> None:
    play = path.with_name("play.jsonl")
    play.write_text(json.dumps({"text": "Good my lord, how does your honour for this many a day?"}))
    text = replace(by_table, dataset=str(play), sequence_length=5)
    with pytest.raises(
        UserError, match=r"partitioner is 'class-table', which deals by class labels, but a text has none; use natural"
    ):
        deal(text, path)


# ---- whole runs ------------------------------------------------------------------------------------------------------


def who(run: Any) -> list[dict[str, Any]]:
    """The entries of clients.json, in the order of the clients' numbers."""
    return sorted(json.loads((run.path / "clients.json").read_text()), key=lambda entry: int(entry["client"]))


def test_a_federation_of_a_table(federate: Callable[..., Any], path: Path) -> None:
    run = federate(clients=3, strategy="fedavg", partitioner="class-table", class_table=str(path))
    clients = {client["name"]: client for client in json.loads((run.path / "clients.json").read_text())}
    assert clients.keys() == {name for name, _ in HELD}
    for client, counts in ((clients[name], counts) for name, counts in HELD):
        assert client["train"] + client["validation"] + client["test"] == sum(counts)
        assert [n > 0 for n in client["train-labels"]] == [n > 0 for n in counts]
    assert f'class-table = "{path}"' in (run.path / "config.toml").read_text()


def test_a_federation_with_another_number_of_clients_than_the_table(federate: Callable[..., Any], path: Path) -> None:
    with pytest.raises(UserError, match=r"table\.toml has 3 clients, but the simulation has 4; the two must be equal"):
        federate(clients=4, strategy="fedavg", partitioner="class-table", class_table=str(path))


@pytest.mark.parametrize("share", [0.9, 0.5, 0.2])
def test_a_federation_of_class_owners(
    federate: Callable[..., Any], settings: Callable[..., dict[str, Value]], cache_dir: Path, share: float
) -> None:
    run = federate(clients=3, strategy="fedavg", partitioner="class-owners", owner_share=share)
    chosen = DataSettings(cache_dir=str(cache_dir), partitioning=Partitioning("class-owners", owner_share=share))
    dealt = [open_partition(chosen, number, 3) for number in range(3)]
    amounts = np.array([counts for _, counts in held(dealt)])
    assert amounts.sum(axis=0).tolist() == DIGITS.tolist()
    own, common = np.floor(DIGITS * share + 0.5), DIGITS - np.floor(DIGITS * share + 0.5)
    # Four classes are the most; 3, 4 and 5 have 546 samples, and 0, 1 and 2 have 537.
    for owner, block in enumerate(([6, 7, 8, 9], [3, 4, 5], [0, 1, 2])):
        for client in range(3):
            alone = own[block] if client == owner else 0
            assert (np.abs(amounts[client, block] - alone - common[block] / 3) < 1).all()
    clients = who(run)
    assert [client["name"] for client in clients] == ["0", "1", "2"]
    assert [sum(client[which] for which in ("train", "validation", "test")) for client in clients] == [
        *amounts.sum(axis=1)
    ]
    assert [client["train-labels"] for client in clients] == [client.label_counts("train") for client in dealt]
