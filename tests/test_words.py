"""Tokens of texts: hashed words, lists of words, tokenisers' files, texts with labels, the next word, plain files."""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch

from fedham_flwr.core.errors import UserError
from fedham_flwr.data import plain_texts, recipes
from fedham_flwr.data.batches import inputs_and_targets
from fedham_flwr.data.client_data import ClientData
from fedham_flwr.data.clients import open_node, open_partition
from fedham_flwr.data.data_settings import DataSettings, Partitioning
from fedham_flwr.data.kinds import words
from fedham_flwr.data.kinds.words import TextSettings

Open = Callable[..., ClientData]
SAID = ["The cat sat, sat!", "a dog", "", "the dog sat on the cat"]
ROWS = {"text": SAID * 3, "topic": ["cat", "dog", "none", "both"] * 3, "site": ["a", "b"] * 6}
LABELLED: dict[str, Any] = {"label_column": "topic", "sequence_length": 5}


@pytest.fixture
def opened(tmp_path: Path) -> Open:
    """Writes columns, and opens the data of one client: opened(columns, number, clients, **settings)."""

    def make(columns: dict[str, Any], number: int = 0, clients: int = 1, by: str = "iid", **more: Any) -> ClientData:
        datasets.Dataset.from_dict(columns).to_parquet(tmp_path / "rows.parquet")
        given = {"cache_dir": str(tmp_path / "cache"), "partitioning": Partitioning(by), **more}
        return open_partition(DataSettings(str(tmp_path / "rows.parquet"), **given), number, clients)

    return make


@pytest.fixture
def listed(tmp_path: Path) -> str:
    """A file of five words."""
    (tmp_path / "words.txt").write_text("the\ncat\nsat\n\n dog \n,\n")
    return str(tmp_path / "words.txt")


@pytest.fixture
def subwords(tmp_path: Path) -> str:
    """A tokeniser's file: pairs of letters that were merged."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE(unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.train_from_iterator(
        SAID * 4, trainers.BpeTrainer(vocab_size=40, special_tokens=["[UNK]"], show_progress=False)
    )
    tokenizer.enable_padding(length=50)
    tokenizer.save(str(tmp_path / "bpe.json"))
    return str(tmp_path / "bpe.json")


# ---- what makes tokens -----------------------------------------------------------------------------------------------


def test_words_are_in_small_letters_and_signs_are_words() -> None:
    assert words.split_words("The cat's 2nd,\n é!") == ["the", "cat", "'", "s", "2nd", ",", "é", "!"]


def test_the_code_of_a_hashed_word_is_the_same_everywhere() -> None:
    tokeniser = words.tokeniser_of({"unit": "word", "buckets": 100})
    assert tokeniser.size == 102
    assert tokeniser.codes("Cat dog cat") == [2 + zlib.crc32(word) % 100 for word in (b"cat", b"dog", b"cat")]
    assert tokeniser.codes("cat") == [2 + 2656977832 % 100]  # written down: another version must not hash otherwise


def test_words_of_a_list_and_others(listed: str) -> None:
    recipe = words.recipe_of(TextSettings(tokenizer=listed), "", labelled=True)
    assert recipe == {"unit": "word", "words": ["the", "cat", "sat", "dog", ","]}
    tokeniser = words.tokeniser_of(recipe)
    assert tokeniser.names == ("<mask>", "<line>", "<unknown>", "the", "cat", "sat", "dog", ",")
    assert tokeniser.codes(SAID[0]) == [3, 4, 5, 7, 5, 2]


def test_characters_of_texts_with_labels() -> None:
    recipe = words.recipe_of(TextSettings(unit="character"), "abc", labelled=True)
    assert words.padded(["cab!", "a"], recipe, 5).tolist() == [[5, 3, 4, 2, 0], [3, 0, 0, 0, 0]]


def test_subwords_of_a_tokenisers_file(subwords: str) -> None:
    from tokenizers import Tokenizer

    recipe = words.recipe_of(TextSettings(tokenizer=subwords), "", labelled=True)
    assert recipe["unit"] == "subword"
    tokeniser, theirs = words.tokeniser_of(recipe), Tokenizer.from_file(subwords)
    theirs.no_padding()
    assert tokeniser.codes("the cat sat") == [2 + code for code in theirs.encode("the cat sat").ids]
    assert [tokeniser.names[code] for code in tokeniser.codes("the cat")] == theirs.encode("the cat").tokens
    assert tokeniser.size == len(tokeniser.names) == theirs.get_vocab_size() + 2


@pytest.mark.parametrize(("size", "kind"), [(256, np.uint8), (257, np.int16), (32_768, np.int16), (32_769, np.int32)])
def test_codes_take_no_more_bytes_than_they_need(size: int, kind: type) -> None:
    assert words.narrowest(size) is kind


@pytest.mark.parametrize(
    ("given", "content", "labelled", "message"),
    [
        ({"unit": "subword"}, None, True, r'text\.unit="subword" needs text\.tokenizer'),
        ({"unit": "word"}, None, False, r'text\.unit="word" predicts the next word, which needs a list of words'),
        ({"tokenizer": "FILE"}, None, True, r"text\.tokenizer='.*file' can't be read: No such file"),
        ({"tokenizer": "FILE"}, "\n\n", True, r"has no words: wanted one a line"),
        ({"tokenizer": "FILE"}, "a\nb\na\n", True, r"has the word 'a' twice, but must have each one once"),
        ({"tokenizer": "FILE", "unit": "subword"}, "a\n", True, r'is a list of words, but text\.unit is "subword"'),
        ({"tokenizer": "FILE", "unit": "word"}, "{}", True, r"is a tokeniser's JSON, but text\.unit is \"word\""),
    ],
)
def test_settings_that_make_no_tokens(
    tmp_path: Path, given: dict[str, Any], content: str | None, labelled: bool, message: str
) -> None:
    if content is not None:
        (tmp_path / "file").write_text(content)
    chosen = {key: str(tmp_path / "file") if value == "FILE" else value for key, value in given.items()}
    with pytest.raises(UserError, match=message):
        words.recipe_of(TextSettings(**chosen), "abc", labelled)


def test_a_file_that_is_no_tokeniser_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text('{"a": 1}')
    recipe = words.recipe_of(TextSettings(tokenizer=str(tmp_path / "x.json")), "", labelled=True)
    with pytest.raises(UserError, match=r"is no tokeniser's file"):
        words.tokeniser_of(recipe)


# ---- texts with labels -----------------------------------------------------------------------------------------------


def test_a_text_with_a_label_is_a_sample(opened: Open) -> None:
    client = opened(ROWS, **LABELLED, text=TextSettings(buckets=50))
    assert (client.kind, client.target, client.shape) == ("tokens", "class", (5, 52, 2, 0))
    assert client.classes == ("both", "cat", "dog", "none")
    assert client.labels.tolist() == [1, 2, 3, 0] * 3
    code = words.tokeniser_of({"unit": "word", "buckets": 50}).codes
    assert client.features[0].tolist() == code("the cat sat , sat")  # longer ones are cut
    assert client.features[1].tolist() == [*code("a dog"), 0, 0, 0]  # shorter ones filled up
    assert client.features[2].tolist() == [0] * 5
    inputs, targets = inputs_and_targets(client.features[:2], client.labels[:2], client.kind)
    assert inputs.dtype == torch.int64
    assert targets.tolist() == [1, 2]
    assert client.label_counts("train") == torch.bincount(client.labels[client.splits["train"]]).tolist()


def test_texts_with_labels_are_dealt_by_owner_and_by_label(opened: Open) -> None:
    natural = opened(ROWS, 1, 2, "natural", client_column="site", **LABELLED)
    assert natural.name == "b"
    assert {int(i) % 2 for part in natural.splits.values() for i in part} == {1}
    assert opened(ROWS, 0, 2, "dirichlet", **LABELLED).counts()["train"] > 0


@pytest.mark.parametrize(("label", "target"), [("score", "value"), ("good long", "multi-label")])
def test_texts_of_values_and_of_several_labels(opened: Open, label: str, target: str) -> None:
    columns = {"text": SAID * 3, "score": [0.5] * 12, "good": [0, 1] * 6, "long": [1, 1] * 6}
    client = opened(columns, label_column=label, target=target, sequence_length=5)
    assert (client.target, client.kind, client.outputs) == (target, "tokens", len(label.split()))


def test_without_a_label_column_the_next_character_is_predicted(opened: Open) -> None:
    columns = {"text": SAID * 3, "label": [0, 1] * 6}
    assert opened(columns, sequence_length=5).target == "next-token"
    assert opened(columns, sequence_length=5, target="class").kind == "tokens"


def test_with_another_length_or_unit_the_source_is_not_read_again(opened: Open, tmp_path: Path) -> None:
    for more in ({}, {"text": TextSettings(buckets=9)}, {"text": TextSettings(unit="character")}):
        opened(ROWS, **LABELLED, **more)
    folders = [*(tmp_path / "cache").glob("data-*/")]
    assert len(folders) == 1
    assert len([*folders[0].glob("windows-*/meta.json")]) == 3


def test_clients_agree_on_what_makes_tokens(opened: Open, listed: str) -> None:
    found = {
        name: opened(ROWS, **LABELLED, text=text).meanings
        for name, text in {
            "hash": TextSettings(), "again": TextSettings(unit="word"), "other": TextSettings(buckets=9),
            "listed": TextSettings(tokenizer=listed),
        }.items()
    }  # fmt: skip
    assert found["hash"] == found["again"]
    assert len({meanings[1] for meanings in found.values()}) == 3
    assert all(meanings[0] == ("both", "cat", "dog", "none") for meanings in found.values())


def test_at_a_node_a_class_must_not_depend_on_the_others(tmp_path: Path) -> None:
    datasets.Dataset.from_dict(ROWS).to_parquet(tmp_path / "rows.parquet")
    with pytest.raises(UserError, match=r"the label-column of .*rows\.parquet holds both, cat, dog, none, whose class"):
        open_node(DataSettings("x", cache_dir=str(tmp_path / "cache"), **LABELLED), str(tmp_path / "rows.parquet"))


# ---- the next word ---------------------------------------------------------------------------------------------------


def test_the_next_word_of_each_owner(opened: Open, listed: str) -> None:
    columns = {"text": ["the cat sat", "dog", "The dog,", "cat"], "who": ["a", "b", "a", "b"]}
    given: dict[str, Any] = {"client_column": "who", "sequence_length": 2, "text": TextSettings(tokenizer=listed)}
    with pytest.raises(UserError, match=r"2 clients were asked for, but .* only 1"):
        opened(columns, 0, 2, "natural", **given)
    client = opened(columns, 0, 1, "natural", **given)
    # the cat sat | line | the dog , ; of b there is dog | line | cat, too few
    assert client.features[:3].tolist() == [[3, 4, 5], [5, 1, 3], [3, 6, 7]]
    assert (client.target, client.kind, client.shape, client.outputs) == ("next-token", "text", (2,), 8)
    assert client.classes[3:5] == ("the", "cat")


# ---- new rows --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("unit", ["hash", "character", "words", "subwords", "next character", "next word"])
def test_new_texts_become_the_same_codes_as_in_training(opened: Open, unit: str, listed: str, subwords: str) -> None:
    text = {
        "hash": TextSettings(), "character": TextSettings(unit="character"), "words": TextSettings(tokenizer=listed),
        "subwords": TextSettings(tokenizer=subwords), "next character": TextSettings(),
        "next word": TextSettings(tokenizer=listed),
    }[unit]  # fmt: skip
    more = {"sequence_length": 4} if unit.startswith("next") else LABELLED
    client = opened(ROWS, text=text, **more)
    recipe = json.loads(recipes.label(client)["recipe"])
    found = recipes.encode(datasets.Dataset.from_dict(ROWS), recipe)
    assert found.dtype == client.features.numpy().dtype
    assert np.array_equal(found, client.features.numpy())


def test_new_texts_that_do_not_fit_are_named(opened: Open) -> None:
    recipe = json.loads(recipes.label(opened(ROWS, sequence_length=4))["recipe"])
    for columns, message in [
        ({"said": ["a"]}, r"feature-column is 'text', but the columns are said"),
        ({"text": ["a", None]}, r"feature-column 'text' has 1 empty rows"),
        ({"text": ["fine", "a na\xefve"]}, r"the text of row 1 has the character 'ï'"),
    ]:
        with pytest.raises(UserError, match=message):
            recipes.encode(datasets.Dataset.from_dict(columns), recipe)


# ---- plain files -----------------------------------------------------------------------------------------------------


def test_a_text_file_is_a_data_set(tmp_path: Path) -> None:
    (tmp_path / "play.txt").write_bytes("\ufeffab ab\r\nab".encode())
    settings = DataSettings(
        str(tmp_path / "play.txt"), sequence_length=2, vocabulary="ab \n", cache_dir=str(tmp_path / "cache")
    )
    client = open_node(settings, str(tmp_path / "play.txt"))
    assert client.features.tolist() == [[0, 1, 2], [2, 0, 1], [1, 3, 0]]


def test_a_folder_of_texts_has_a_row_for_each_file(tmp_path: Path) -> None:
    folder = tmp_path / "plays"
    (folder / "old").mkdir(parents=True)
    for name, said in {"hamlet.txt": "to be\n", "old/lear.TXT": "no no", "README.md": "#", ".hidden.csv": "x"}.items():
        (folder / name).write_text(said)
    rows = plain_texts.load(folder)
    assert rows is not None
    assert rows.to_dict() == {"text": ["to be", "no no"], "file": ["hamlet", "old/lear"]}
    (folder / "rows.csv").write_text("a,b\n1,2\n")
    assert plain_texts.load(folder) is None  # a table with notes beside it
    assert plain_texts.load(folder / "rows.csv") is None


def test_a_text_that_is_not_in_utf8_is_named(tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_bytes(b"caf\xe9")
    with pytest.raises(UserError, match=r"the text .*x\.txt is not in UTF-8 \(byte 3\)"):
        plain_texts.load(tmp_path)
