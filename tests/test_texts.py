"""Text: texts joined for each owner, cut into windows, and what is said of characters that do not belong."""

from __future__ import annotations

import dataclasses
import json
import string
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedham_flwr.core.errors import UserError
from fedham_flwr.data.clients import open_partition
from fedham_flwr.data.data_settings import DataSettings, Fractions, Partitioning
from fedham_flwr.data.kinds import characters
from fedham_flwr.data.kinds import text as texts
from fedham_flwr.data.kinds.words import TextSettings
from fedham_flwr.data.partitions import partition
from fedham_flwr.data.splits import split, split_in_order


def windows(
    said: Sequence[str], owners: Sequence[int] | None, length: int, vocabulary: str = ""
) -> dict[str, np.ndarray]:
    """What `join` and `cut` write, by file name, and the `characters` of each owner."""
    with TemporaryDirectory() as name:
        joined, folder = Path(name) / "joined", Path(name) / "cut"
        joined.mkdir()
        folder.mkdir()
        rows = np.array(said, dtype=object)
        sizes = texts.join(rows, None if owners is None else np.array(owners), joined)
        meta = {"kind": "text", "characters": sizes} | ({} if owners is None else {"owners": ["x"] * max(owners)})
        (joined / "meta.json").write_text(json.dumps(meta))
        recipe = texts.recipe_of(length, vocabulary, TextSettings(), labelled=False)
        texts.cut(joined, recipe, folder)
        written = {path.stem: np.load(path) for path in [*folder.glob("*.npy"), joined / "characters.npy"]}
        meta_of_cut = json.loads((folder / "meta.json").read_text())
        classes = {"classes": list(vocabulary or string.printable), "recipe": recipe | {"column": "text"}}
        assert meta_of_cut == meta | classes
        return written | {"points": written["characters"], "characters": np.array(sizes)}


def test_windows_by_hand() -> None:
    # Owner 0 says "cab", owner 1 "ab" and "cc": cab | ab\ncc. Windows of 2 + 1: cab | ab\n, \ncc.
    found = windows(["ab", "cab", "cc"], [1, 0, 1], 2, "abc\n")
    assert found["features"].tolist() == [[2, 0, 1], [0, 1, 3], [3, 2, 2]]
    assert found["features"].dtype == np.uint8
    assert found["owners"].tolist() == [0, 1, 1]
    assert found["labels"].tolist() == [0, 0, 0]
    assert found["labels"].dtype == np.int64
    assert found["characters"].tolist() == [3, 5]


def test_what_fills_no_window_is_left_out() -> None:
    # 7 characters: two windows of 3 + 1 take all, one of 4 + 1 leaves two; 7 is no window of 7 + 1.
    assert windows(["abcabca"], None, 3, "abc")["features"].tolist() == [[0, 1, 2, 0], [0, 1, 2, 0]]
    assert windows(["abcabca"], None, 4, "abc")["features"].tolist() == [[0, 1, 2, 0, 1]]
    nothing = windows(["abcabca"], None, 7, "abc")
    assert nothing["features"].shape == (0, 8)
    assert nothing["labels"].shape == (0,)
    assert windows([""], None, 1, "abc")["features"].shape == (0, 2)


def test_one_owner_has_all_rows_in_their_order() -> None:
    found = windows(["b", "", "a"], None, 1, "ab\n")
    assert found["features"].tolist() == [[1, 2], [2, 2], [2, 0]]  # b, two line breaks, a
    assert "owners" not in found


def test_codes_are_places_in_the_vocabulary() -> None:
    assert characters.parse_vocabulary("") == string.printable
    found = windows(["09azAZ~ \n"], None, 8)
    # 10 digits, 26 small and 26 large letters, 32 signs of which ~ is the last, then blank, tab, line break
    assert found["features"].tolist() == [[0, 9, 10, 35, 36, 61, 93, 94, 96]]
    assert windows(["cab"], None, 2, "bca")["features"].tolist() == [[1, 2, 0]]


OWNED = st.lists(st.tuples(st.integers(0, 3), st.text("ab\n é€", max_size=12)), min_size=1, max_size=12)


@given(rows=OWNED, length=st.integers(1, 5))
def test_windows_joined_again_are_the_text_of_one_owner(rows: list[tuple[int, str]], length: int) -> None:
    present = sorted({owner for owner, _ in rows})
    owners = [present.index(owner) for owner, _ in rows]
    vocabulary = "€\né ba"
    found = windows([said for _, said in rows], owners, length, vocabulary)
    assert len(found["features"]) == len(found["owners"])
    for owner in range(len(present)):
        whole = "\n".join(said for (_, said), who in zip(rows, owners, strict=True) if who == owner)
        mine = found["features"][found["owners"] == owner]
        said = ["".join(vocabulary[code] for code in row) for row in mine]
        assert found["characters"][owner] == len(whole)
        assert len(said) == max(0, len(whole) - 1) // length
        again = "".join(window[:-1] for window in said) + (said[-1][-1] if said else "")
        assert again == whole[: len(said) * length + bool(said)]
        assert all(one[-1] == after[0] for one, after in pairwise(said))


@given(rows=OWNED, length=st.integers(1, 5))
def test_blocks_change_nothing(rows: list[tuple[int, str]], length: int) -> None:
    said, owners = [text for _, text in rows], np.unique([owner for owner, _ in rows], return_inverse=True)[1]
    whole = windows(said, owners.tolist(), length, "ab\n é€")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(texts, "_ROWS", 2)
        patch.setattr(characters, "_CHARACTERS", 5)
        blocks = windows(said, owners.tolist(), length, "ab\n é€")
    assert whole.keys() == blocks.keys()
    assert all(np.array_equal(whole[name], blocks[name]) for name in whole)


@pytest.mark.parametrize(("character", "dtype"), [("a", np.uint8), ("ÿ", np.uint8), ("€", "<u2"), ("𝄞", "<u4")])
def test_characters_take_no_more_bytes_than_the_widest_needs(character: str, dtype: object) -> None:
    found = windows(["x" * 5, character], None, 3, f"\nx{character}")
    assert found["points"].dtype == dtype
    assert found["features"].tolist() == [[1, 1, 1, 1], [1, 1, 0, 2]]


def test_a_vocabulary_of_256_characters_has_256_codes() -> None:
    vocabulary = "".join(map(chr, range(0x100, 0x200)))
    found = windows([vocabulary[::-1]], None, 255, vocabulary)
    assert found["features"].tolist() == [list(range(255, -1, -1))]


@pytest.mark.parametrize(
    ("vocabulary", "message"),
    [
        ("a", r"vocabulary has 1 characters, but must have from 2 to 256"),
        ("".join(map(chr, range(257))), r"vocabulary has 257 characters, but must have from 2 to 256"),
        ("abca", r"vocabulary has the character 'a' \(U\+0061\) twice, but must have each one once"),
        ("a\n\n", r"vocabulary has the character '\\n' \(U\+000A\) twice"),
    ],
)
def test_a_vocabulary_that_is_none(vocabulary: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        windows(["aa"], None, 1, vocabulary)


def test_a_character_outside_of_the_vocabulary_is_named_with_its_row() -> None:
    # In the order of the owners, row 3 comes first; in that of the data set, row 1.
    said, owners = ["plain", "a na\xefve caf\xe9", "plain", "\u2014 so \u2014"], [1, 1, 1, 0]
    message = (
        r"the text of row 1 has the character 'ï' \(U\+00EF\), which is not in vocabulary \(4 such characters in all, "
        r"3 different: 'éï—'\); set vocabulary to all characters that the texts have"
    )
    with pytest.raises(UserError, match=message):
        windows(said, owners, 2)


def test_many_characters_outside_of_the_vocabulary_are_not_all_listed() -> None:
    with pytest.raises(
        UserError, match=r"row 0 has the character 'Ā' .*\(50 such .*, 50 different: 'Ā.{39}' and more\)"
    ):
        windows(["".join(map(chr, range(0x100, 0x132)))], None, 2)


def test_what_joins_texts_must_be_in_the_vocabulary() -> None:
    with pytest.raises(
        UserError, match=r"vocabulary lacks '\\n' \(U\+000A\), by which the texts of a client are joined"
    ):
        windows(["ab", "ab", "ab"], [0, 1, 1], 1, "ab")
    # Nothing is joined where each owner has one text.
    assert windows(["ab", "ba"], [0, 1], 1, "ab")["features"].tolist() == [[0, 1], [1, 0]]


@pytest.mark.parametrize(("clients", "least"), [(1, 11), (4, 41)])
def test_a_text_has_two_samples_for_each_client(clients: int, least: int) -> None:
    texts.check_length("a.csv", least, 5, clients)
    message = rf"the text of a\.csv has {least - 1} characters, but with sequence-length=5 at least {least} are needed"
    with pytest.raises(UserError, match=message):
        texts.check_length("a.csv", least - 1, 5, clients)


def test_samples_of_owners_who_have_enough() -> None:
    owners = np.array([0, 0, 1, 2, 2, 2])
    kept = texts.samples_of_long_texts([5, 4, 6], owners, 2, 0, clients=2)  # 2 * 2 + 1
    assert kept.tolist() == [0, 1, 3, 4, 5]
    assert texts.samples_of_long_texts([5, 4, 6], owners, 2, 6, clients=1).tolist() == [3, 4, 5]
    with pytest.raises(
        UserError, match=r"3 clients .* of the 3 .* only 2 have at least 5 .* \(with sequence-length=2, one"
    ):
        texts.samples_of_long_texts([5, 4, 6], owners, 2, 5 - 1, clients=3)
    with pytest.raises(
        UserError, match=r"2 clients .* of the 3 .* only 1 have at least 6 characters \(min-characters=6\)"
    ):
        texts.samples_of_long_texts([5, 4, 6], owners, 2, 6, clients=2)


# ---- which column --------------------------------------------------------------------------------------------------


def write_rows(path: Path, *rows: dict[str, str]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_a_text_is_the_column_called_text_or_the_one_named(tmp_path: Path) -> None:
    rows = [{"text": said, "notes": note * 9} for said, note in zip(["ab", "cd"] * 4, "xy" * 4, strict=True)]
    path = str(write_rows(tmp_path / "rows.jsonl", *rows))
    settings = {"partitioning": Partitioning("iid"), "cache_dir": str(tmp_path / "cache"), "sequence_length": 3}
    client = open_partition(DataSettings(path, vocabulary="abcdxy\n", **settings), 0, 1)
    assert client.features[:2].tolist() == [[0, 1, 6, 2], [2, 3, 6, 0]]  # ab, cd, ab ...
    assert client.classes == tuple("abcdxy\n")
    client = open_partition(DataSettings(path, "notes", vocabulary="xy\n", **settings), 0, 1)
    assert client.features[2:4].tolist() == [[0, 0, 0, 2], [2, 1, 1, 1]]


def test_splits_of_a_text_are_joined_train_first(tmp_path: Path) -> None:
    folder = tmp_path / "plays"
    folder.mkdir()
    for name, said in (("test", "de"), ("train", ["ab", "c"])):
        write_rows(folder / f"{name}.jsonl", *({"text": text} for text in said))
    settings = {"partitioning": Partitioning("iid"), "cache_dir": str(tmp_path / "cache"), "sequence_length": 2}
    client = open_partition(DataSettings(str(folder), vocabulary="abcde\n", **settings), 0, 1)
    assert client.features.tolist() == [[0, 1, 5], [5, 2, 5], [5, 3, 5]]  # ab, c, d, e, of which the last is left out


# ---- samples that follow on one another ------------------------------------------------------------------------------


@given(n=st.integers(2, 80), validation=st.floats(0, 0.45), test=st.floats(0.01, 0.5), seed=st.integers(0, 99))
def test_in_order_means_training_then_validation_then_test(n: int, validation: float, test: float, seed: int) -> None:
    indices = np.random.default_rng(seed).choice(200, n, replace=False)
    fractions = Fractions(validation, test)
    splits = split_in_order(indices, fractions)
    assert np.concatenate([splits[name] for name in ("train", "validation", "test")]).tolist() == sorted(indices)
    other = split(np.sort(indices), np.zeros(200, dtype=np.int64), fractions, np.random.default_rng(0))
    assert {name: len(part) for name, part in splits.items()} == {name: len(part) for name, part in other.items()}


def test_in_order_there_are_two_samples_too() -> None:
    with pytest.raises(UserError, match=r"client 'YORICK' has 1 samples, but needs at least 2"):
        split_in_order(np.array([0]), Fractions(), "YORICK")
    with pytest.raises(UserError, match=r"validation-fraction is 0\.5 and test-fraction 0\.5, but"):
        split_in_order(np.arange(4), Fractions(0.5, 0.5))


@pytest.mark.parametrize("partitioner", ["natural", "iid"])
def test_of_ordered_samples_the_first_are_kept(partitioner: str) -> None:
    labels, owners = np.zeros(60, dtype=np.int64), np.arange(60) % 3
    settings = Partitioning(partitioner)
    whole = partition(settings, labels, 3, owners, ordered=True)
    few = partition(dataclasses.replace(settings, samples_per_client=5), labels, 3, owners, ordered=True)
    assert [part.tolist() for part in few] == [part[:5].tolist() for part in whole]


@pytest.mark.parametrize("partitioner", ["dirichlet", "pathological", "noniid-1", "noniid-2"])
def test_ordered_samples_are_not_dealt_by_label(partitioner: str) -> None:
    with pytest.raises(
        UserError, match=rf"partitioner is '{partitioner}', which deals by class labels, but a text has"
    ):
        partition(Partitioning(partitioner), np.zeros(40, dtype=np.int64), 2, ordered=True)
