"""Dealing by class: owners of classes, and tables that a user writes. (Cache and runs: test_class_runs.py.)"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedham_flwr.core.errors import UserError
from fedham_flwr.data.class_tables import ClassTable, hand_out, owner_amounts, read_table, table_amounts, table_owners
from fedham_flwr.data.data_settings import Partitioning
from fedham_flwr.data.partitions import partition
from fedham_flwr.settings import parse

ANIMALS = ("bird", "cat", "deer", "dog")


def shuffled(counts: Sequence[int]) -> np.ndarray:
    return np.random.default_rng(1).permutation(np.repeat(np.arange(len(counts)), counts))


def table(parts: Sequence[np.ndarray], labels: np.ndarray, classes: int) -> list[list[int]]:
    return [np.bincount(labels[part], minlength=classes).tolist() for part in parts]


def class_table(**clients: dict[str, int | float]) -> ClassTable:
    return ClassTable(Path("t.toml"), clients)


# ---- handing out -----------------------------------------------------------------------------------------------------


@given(st.data())
def test_hand_out_gives_exactly_the_amounts_and_no_sample_twice(data: st.DataObject) -> None:
    clients, classes = data.draw(st.integers(1, 5)), data.draw(st.integers(1, 5))
    row = st.lists(st.integers(0, 6), min_size=classes, max_size=classes)
    amounts = np.array(data.draw(st.lists(row, min_size=clients, max_size=clients)))
    labels = shuffled((amounts.sum(axis=0) + data.draw(st.integers(0, 3))).tolist())
    parts = hand_out(labels, np.arange(classes), amounts, np.random.default_rng(data.draw(st.integers(0, 99))))
    assert table(parts, labels, classes) == amounts.tolist()
    assert len(np.unique(np.concatenate(parts))) == amounts.sum()


# ---- class-owners ----------------------------------------------------------------------------------------------------


def test_owner_amounts_by_hand() -> None:
    # 9 of 10 are the owner's; the tenth of class c is card c, which client c mod 3 gets.
    assert owner_amounts(np.full(10, 10), 3, 0.9).tolist() == [
        [10, 9, 9, 1, 0, 0, 1, 0, 0, 1],
        [0, 1, 0, 9, 10, 9, 0, 1, 0, 0],
        [0, 0, 1, 0, 0, 1, 9, 9, 10, 9],
    ]
    # Half of 7 and 4 is 4 (rounded up) and 2; cards 0, 1, 2 are of class 0, cards 3 and 4 of class 1.
    assert owner_amounts(np.array([7, 4]), 2, 0.5).tolist() == [[4 + 2, 1], [1, 2 + 1]]


@pytest.mark.parametrize(
    ("classes", "clients", "blocks"),
    [(10, 3, [3, 3, 4]), (11, 3, [3, 4, 4]), (8, 5, [1, 1, 2, 2, 2]), (6, 3, [2, 2, 2]), (4, 4, [1] * 4), (5, 1, [5])],
)
def test_blocks_are_neighbours_and_the_larger_ones_come_last(classes: int, clients: int, blocks: list[int]) -> None:
    amounts = owner_amounts(np.full(classes, 7), clients, 1.0)
    assert (amounts > 0).sum(axis=1).tolist() == blocks
    assert amounts.argmax(axis=0).tolist() == np.repeat(np.arange(clients), blocks).tolist()
    assert set(amounts.flatten().tolist()) <= {0, 7}


def dealt_like_cards(counts: list[int], clients: int, share: float) -> list[list[int]]:
    """`owner_amounts`, sample by sample."""
    amounts = [[0] * len(counts) for _ in range(clients)]
    sizes = [len(counts) // clients] * clients
    for i in range(len(counts) % clients):
        sizes[-1 - i] += 1
    owners = [client for client, size in enumerate(sizes) for _ in range(size)]
    card = 0
    for c, (count, owner) in enumerate(zip(counts, owners, strict=True)):
        own = int(count * share + 0.5)
        amounts[owner][c] += own
        for _ in range(count - own):
            amounts[card % clients][c] += 1
            card += 1
    return amounts


@given(counts=st.lists(st.integers(1, 40), min_size=1, max_size=12), share=st.floats(0, 1), data=st.data())
def test_owner_amounts_are_those_of_dealing_cards(counts: list[int], share: float, data: st.DataObject) -> None:
    clients = data.draw(st.integers(1, len(counts)))
    amounts = owner_amounts(np.array(counts), clients, share)
    assert amounts.tolist() == dealt_like_cards(counts, clients, share)
    assert amounts.sum(axis=0).tolist() == counts
    common, owners = amounts.copy(), np.array(dealt_like_cards(counts, clients, 1.0)).argmax(axis=0)
    common[owners, np.arange(len(counts))] -= [int(count * share + 0.5) for count in counts]
    assert (np.ptp(common, axis=0) <= 1).all()
    assert np.ptp(common.sum(axis=1)) <= 1


@given(share=st.floats(0, 1), clients=st.integers(1, 5), seed=st.integers(0, 99))
def test_class_owners_deals_all_samples_and_none_twice(share: float, clients: int, seed: int) -> None:
    labels = shuffled([20, 31, 22, 43, 24])
    parts = partition(Partitioning("class-owners", owner_share=share, seed=seed), labels, clients)
    assert np.sort(np.concatenate(parts)).tolist() == list(range(140))
    wanted = dealt_like_cards([20, 31, 22, 43, 24], clients, share)
    assert table(parts, labels, 5) == sorted(wanted, key=sum, reverse=True)  # a stable sort: equals keep their order


def test_the_largest_owner_comes_first_and_equals_keep_the_order_of_their_classes() -> None:
    def dealt(counts: list[int]) -> list[list[int]]:
        labels = shuffled(counts)
        return table(partition(Partitioning("class-owners", owner_share=1.0), labels, 3), labels, len(counts))

    assert dealt([5, 5, 5, 5]) == [[0, 0, 5, 5], [5, 0, 0, 0], [0, 5, 0, 0]]
    assert dealt([5, 9, 5]) == [[0, 9, 0], [5, 0, 0], [0, 0, 5]]


def test_a_share_of_zero_gives_everyone_as_much_of_each_class() -> None:
    labels = shuffled([12, 9, 15])
    parts = partition(Partitioning("class-owners", owner_share=0.0), labels, 3)
    assert table(parts, labels, 3) == [[4, 3, 5]] * 3


def test_of_owners_too_at_most_so_many_samples_are_kept() -> None:
    labels = shuffled([100, 100, 100])
    parts = partition(Partitioning("class-owners", owner_share=0.7, samples_per_client=20), labels, 3)
    # Of 80 of the own class and 10 each of the others, 20 are 16, 2 and 2.
    assert table(parts, labels, 3) == [[16, 2, 2], [2, 16, 2], [2, 2, 16]]


def test_more_owners_than_classes() -> None:
    with pytest.raises(
        UserError, match=r"class-owners cannot serve 5 clients, .* must own a class .* only 4; use fewe"
    ):
        partition(Partitioning("class-owners"), shuffled([9] * 4), 5)


@pytest.mark.parametrize("share", [-0.1, 1.5, float("nan")])
def test_a_share_that_is_none(share: float) -> None:
    with pytest.raises(UserError, match=rf"owner-share is {share}, but must be from 0 to 1"):
        partition(Partitioning("class-owners", owner_share=share), shuffled([9] * 4), 2)


# ---- a table: what it asks for ---------------------------------------------------------------------------------------

TABLE = """
[clients.A]        # comments are nothing
cat = 4
dog = 0.25
[clients."Ward 3, Zürich"]
cat = 1.0
2 = 1
dog = 0
bird = 1
"""


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., str]:
    """Write a table and give its path: write(text, name="table.toml")."""

    def make(text: str, name: str = "table.toml") -> str:
        (tmp_path / name).write_text(text)
        return str(tmp_path / name)

    return make


def test_a_table_is_read_with_its_names_and_the_types_of_its_values(write: Callable[..., str]) -> None:
    found = read_table(write(TABLE))
    assert [*found.clients] == ["A", "Ward 3, Zürich"]
    assert found.clients["A"] == {"cat": 4, "dog": 0.25}
    assert [type(amount) for amount in found.clients["A"].values()] == [int, float]
    assert found.clients["Ward 3, Zürich"] == {"cat": 1.0, "2": 1, "dog": 0, "bird": 1}


def test_a_path_may_be_relative_or_begin_with_the_home_folder(
    write: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(TABLE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert read_table("table.toml") == read_table("~/table.toml") == read_table(path)


def test_amounts_by_hand() -> None:
    # A quarter of 11 dogs is 2.75, rounded down; 1.0 is all, 1 is one; 2 is the deer.
    wanted = class_table(A={"cat": 4, "dog": 0.25}, B={"cat": 1.0, "2": 1, "dog": 0, "bird": 1})
    with pytest.raises(UserError, match=r"wants 13 samples of class 'cat' in all, but there are 9"):
        table_amounts(wanted, ANIMALS, np.array([5, 9, 7, 11]))
    wanted = class_table(A={"cat": 4, "dog": 0.25}, B={"cat": 0.5, "2": 1, "dog": 1, "bird": 1.0})
    assert table_amounts(wanted, ANIMALS, np.array([5, 9, 7, 11])).tolist() == [[0, 4, 0, 2], [5, 4, 1, 1]]


def test_a_class_is_known_by_its_number_only_if_none_has_that_name() -> None:
    wanted = class_table(A={"1": 2}, B={"2": 2, "seven": 1})
    # "1" is the name of class 2; "2" nobody's, so it is class 2 as well.
    assert table_amounts(wanted, ("seven", "0", "1"), np.array([5, 5, 5])).tolist() == [[0, 0, 2], [1, 0, 2]]


def test_fractions_that_sum_to_one_never_ask_for_too_much() -> None:
    thirds = class_table(A={"a": 1 / 3}, B={"a": 1 / 3}, C={"a": 1 / 3})
    assert table_amounts(thirds, ("a",), np.array([11])).tolist() == [[3], [3], [3]]
    assert table_amounts(thirds, ("a",), np.array([12])).tolist() == [[4], [4], [4]]
    # 0.29 * 100 is 28.999999999999996 in floating point.
    assert table_amounts(class_table(A={"a": 0.29}, B={"a": 0.71}), ("a",), np.array([100])).tolist() == [[29], [71]]


@given(st.data())
def test_a_table_is_dealt_to_the_sample(data: st.DataObject) -> None:
    classes, clients = data.draw(st.integers(1, 5)), data.draw(st.integers(1, 4))
    counts = data.draw(st.lists(st.integers(10, 40), min_size=classes, max_size=classes))
    one = st.integers(0, 10) | st.floats(0, 1, exclude_min=True)
    wanted = {
        f"client {i}": {str(c): one_of for c in range(classes) if (one_of := data.draw(st.none() | one)) is not None}
        for i in range(clients)
    }
    asked = [[_samples(row.get(str(c), 0), count) for c, count in enumerate(counts)] for row in wanted.values()]
    names, labels, seed = [str(c) for c in range(classes)], shuffled(counts), data.draw(st.integers(0, 99))
    arguments = (ClassTable(Path("t.toml"), wanted), names, labels, clients, seed)
    if min(map(sum, asked)) < 2 or (np.sum(asked, axis=0) > counts).any():
        with pytest.raises(UserError, match=r"at least 2|ask for fewer"):
            table_owners(*arguments)
        return
    owners = table_owners(*arguments)
    assert [np.bincount(labels[owners == i], minlength=classes).tolist() for i in range(clients)] == asked
    assert set(owners.tolist()) <= {-1, *range(clients)}
    parts = partition(Partitioning("class-table"), labels, clients, owners)
    assert table(parts, labels, classes) == sorted(asked, key=sum, reverse=True)


def _samples(amount: int | float, count: int) -> int:
    """A fraction is the most whole samples that are no more than it, but for the error of a float."""
    return amount if isinstance(amount, int) else max(n for n in range(count + 1) if n <= amount * count + 1e-9)


def test_the_seed_draws_the_samples_and_nothing_else() -> None:
    wanted, labels = class_table(A={"0": 10}, B={"0": 5, "1": 0.5}), shuffled([30, 30])
    one, again, other = (table_owners(wanted, ("0", "1"), labels, 2, seed) for seed in (3, 3, 4))
    assert one.tolist() == again.tolist()
    assert one.tolist() != other.tolist()
    assert np.bincount(one + 1).tolist() == np.bincount(other + 1).tolist() == [30, 10, 20]
    assert np.ptp(np.flatnonzero(one == 0)) > 20  # not the first ten


# ---- a table: what is wrong with it ----------------------------------------------------------------------------------

UNREADABLE = [
    ("[clients.A]\ncat = 3\ndog 4\n", r"table\.toml is not TOML: .*line 3"),
    ("[clients.A]\ncat = 3\ncat = 4\n", r"table\.toml is not TOML: .*line 3"),
    ("", r"table\.toml has no client, but wanted a table \[clients\.NAME\] for each one"),
    ("[clients]\n", r"table\.toml has no client, but wanted a table"),
    ("clients = 3\n", r"table\.toml has no client, but wanted a table"),
    ("[client.A]\ncat = 3\n", r"table\.toml has 'client', but wanted a table \[clients\.NAME\] for each client"),
    ("[clients]\nA = 3\n", r"table\.toml has clients\.A = 3, but wanted a table \[clients\.A\]"),
    ("[clients.A]\ncat = -1\n", r"gives client 'A' cat = -1, but wanted a whole number of samples, or a fraction"),
    ("[clients.A]\ncat = 0.0\n", r"'A' cat = 0\.0, but wanted .* above 0\.0 and up to 1\.0"),
    ("[clients.A]\ncat = 1.5\n", r"'A' cat = 1\.5, but wanted"),
    ("[clients.A]\ncat = -0.5\n", r"'A' cat = -0\.5, but wanted"),
    ("[clients.A]\ncat = nan\n", r"'A' cat = nan, but wanted"),
    ("[clients.A]\ncat = inf\n", r"'A' cat = inf, but wanted"),
    ("[clients.A]\ncat = true\n", r"'A' cat = True, but wanted"),
    ('[clients.A]\ncat = "4"\n', r"'A' cat = '4', but wanted"),
    (
        "[clients.ward.3]\ncat = 4\n",
        r"'ward' 3 = \{'cat': 4\}, but wanted .*; a name with a dot in it stands in quotes",
    ),
]


@pytest.mark.parametrize(("text", "message"), UNREADABLE)
def test_what_is_no_table_is_named(write: Callable[..., str], text: str, message: str) -> None:
    with pytest.raises(UserError, match=rf"^class-table .*{message}.*\.$"):
        read_table(write(text))


def test_a_table_that_cannot_be_read(tmp_path: Path) -> None:
    nowhere = tmp_path / "nowhere.toml"
    with pytest.raises(UserError, match=rf"class-table is '{nowhere}', but {nowhere} can't be read \(No such file"):
        read_table(str(nowhere))
    with pytest.raises(UserError, match=r"can't be read \(Is a directory\); give the path of a TOML file"):
        read_table(str(tmp_path))
    nowhere.write_bytes(b"[clients.\xff]\n")
    with pytest.raises(UserError, match=r"nowhere\.toml is not TOML: .*can't decode byte 0xff"):
        read_table(str(nowhere))
    with pytest.raises(UserError, match=r"class-table is empty, but partitioner is 'class-table', which needs"):
        read_table("")


FAULTS: list[tuple[dict[str, dict[str, Any]], str]] = [
    ({"A": {"cat": 3}, "B": {"dgo": 2}}, r"gives client 'B' the class 'dgo', but .* none .*: did you mean 'dog'\?$"),
    ({"A": {"cat": 3}, "B": {"Deer": 2}}, r"'B' the class 'Deer', but .* did you mean 'deer'\?$"),
    ({"A": {"cat": 3}, "B": {"4": 2}}, r"'B' the class '4', but the classes are bird, cat, deer, dog\.$"),
    ({"A": {"cat": 3, "1": 2}, "B": {}}, r"gives client 'A' the class 'cat' again as '1'; name it once"),
    ({"A": {"cat": 3}, "B": {"cat": 7}}, r"wants 10 samples of class 'cat' in all, but there are 9; ask for fewer"),
    ({"A": {"cat": 3}, "B": {"cat": 0.9}}, r"wants 11 samples of class 'cat' in all, but there are 9"),
    ({"A": {"cat": 3}, "B": {"dog": 10**30}}, rf"wants {10**30} samples of class 'dog' in all, but there are 9"),
    ({"A": {"cat": 3}, "B": {"cat": 1}}, r"gives client 'B' 1 samples, but it needs at least 2"),
    ({"A": {"cat": 3}, "B": {}}, r"gives client 'B' 0 samples, but it needs at least 2"),
    ({"A": {"cat": 3}, "B": {"dog": 0.2}}, r"gives client 'B' 1 samples, but it needs at least 2"),
    ({"A": {"cat": 3}}, r"t\.toml has 1 clients, but the simulation has 2; the two must be equal"),
    ({"A": {}, "B": {}, "C": {}}, r"t\.toml has 3 clients, but the simulation has 2"),
]


@pytest.mark.parametrize(("wanted", "message"), FAULTS)
def test_a_table_that_does_not_fit_the_data_set_is_refused(wanted: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        table_owners(class_table(**wanted), ANIMALS, shuffled([9] * 4), 2, seed=0)


def test_of_many_classes_some_are_named() -> None:
    classes = [f"class {c}" for c in range(50)]
    with pytest.raises(UserError, match=r"'zzz', but the classes are class 0, .*, class 19 and more\.$"):
        table_amounts(class_table(A={"zzz": 2}), classes, np.full(50, 9))


def test_without_a_table_there_is_nothing_to_deal_by() -> None:
    with pytest.raises(UserError, match=r"the class-table partitioner needs a table, which says how many samples"):
        partition(Partitioning("class-table"), shuffled([9] * 4), 2)


def test_the_settings_of_a_table_go_together() -> None:
    with pytest.raises(UserError, match='partitioner="class-table" needs class-table, the TOML file'):
        parse({"partitioner": "class-table"})
    with pytest.raises(
        UserError,
        match=r"class-table='t\.toml' is read by partitioner=\"class-table\" only, but partitioner is \"iid\"",
    ):
        parse({"partitioner": "iid", "class-table": "t.toml"})
    settings = parse({"partitioner": "class-table", "class-table": "t.toml", "owner-share": 0.5}).data().partitioning
    assert (settings.partitioner, settings.class_table, settings.owner_share) == ("class-table", "t.toml", 0.5)
