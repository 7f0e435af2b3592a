"""A row's split depends on the row alone: new rows, another order or another type of a column move none."""

from __future__ import annotations

from pathlib import Path

import datasets
import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st
from PIL import Image

from fedham_flwr.core.errors import UserError
from fedham_flwr.data.clients import open_node, open_partitions
from fedham_flwr.data.data_settings import DataSettings, Fractions, Partitioning
from fedham_flwr.data.row_hashes import array_hashes, row_hashes, shares
from fedham_flwr.data.splits import split_by_rows

CELLS = st.one_of(st.integers(-5, 5), st.floats(-3, 3, width=32).map(float), st.none())
ROWS = st.lists(st.tuples(CELLS, st.sampled_from(["yes", "no", "?", ""])), min_size=1, max_size=30)
FRACTIONS = Fractions(0.2, 0.3)


def hashes(rows: list[tuple[object, object]], names: tuple[str, str] = ("age", "label")) -> np.ndarray:
    table = {name: [row[i] for row in rows] for i, name in enumerate(names)}
    table[names[0]] = [None if value is None else float(value) for value in table[names[0]]]  # type: ignore[arg-type]
    return row_hashes(datasets.Dataset.from_dict(table), names)


def where(found: np.ndarray, seed: int = 0) -> list[str]:
    """The split of each row."""
    splits = split_by_rows(np.arange(len(found)), shares(found, seed, "split"), FRACTIONS)
    names = {int(i): name for name, rows in splits.items() for i in rows}
    assert len(names) == sum(map(len, splits.values())) == len(found)
    return [names[i] for i in range(len(found))]


@examples(max_examples=20)
@given(ROWS, ROWS, st.randoms(use_true_random=False))
def test_neither_new_rows_nor_another_order_move_a_row(
    rows: list[tuple[object, object]], more: list[tuple[object, object]], random: object
) -> None:
    found = hashes(rows)
    before, order = where(found), [*range(len(rows) + len(more))]
    random.shuffle(order)  # type: ignore[attr-defined]
    after = dict(zip(order, where(hashes([[*rows, *more][i] for i in order])), strict=True))
    assert [after[i] for i in range(len(rows))] == before
    split_of: dict[int, str] = {}
    for value, split in zip(found.tolist(), before, strict=True):
        assert split_of.setdefault(value, split) == split, "equal rows are in two splits"


@examples(max_examples=5)
@given(st.lists(st.integers(-(10**6), 10**6), min_size=1, max_size=20))
def test_a_value_is_the_same_as_an_integer_a_float_or_a_text(values: list[int]) -> None:
    kinds = (
        values,
        [float(each) for each in values],
        [str(each) for each in values],
        [f" {each}.0 " for each in values],
    )
    found = [row_hashes(datasets.Dataset.from_dict({"a": kind}), ["a"]) for kind in kinds]
    for other in found[1:]:
        assert np.array_equal(found[0], other)


def test_what_is_in_a_row_decides_and_what_is_around_it_does_not() -> None:
    rows = {"age": [1, 2, 2, 1], "sex": ["f", "m", "m", "f"], "label": [0, 1, 1, 1], "note": ["a", "b", "c", "d"]}
    data = datasets.Dataset.from_dict(rows)
    found = row_hashes(data, ["age", "sex", "label"])
    assert found[1] == found[2]
    assert len(set(found.tolist())) == 3
    assert np.array_equal(found, row_hashes(data.select_columns(["label", "sex", "age"]), ["label", "age", "sex"]))
    classes = data.cast_column("sex", datasets.ClassLabel(names=["m", "f", "x"]))
    assert np.array_equal(found, row_hashes(classes, ["age", "sex", "label"]))
    swapped = datasets.Dataset.from_dict({"age": rows["label"], "label": rows["age"]})
    assert not np.array_equal(row_hashes(swapped, ["age", "label"]), row_hashes(data, ["age", "label"]))
    gaps = {"a": [None, float("nan"), 0.0, -0.0]}
    none, nan, zero, minus = row_hashes(datasets.Dataset.from_dict(gaps), ["a"]).tolist()
    assert none == nan
    assert zero == minus != none
    lists = datasets.Dataset.from_dict({"a": [[1, 2], [1.0, 2.0], [2, 1]]})
    one, same, other = row_hashes(lists, ["a"]).tolist()
    assert one == same != other


def test_the_parts_are_the_fractions_within_binomial_bounds_and_differ_by_seed() -> None:
    n = 20_000
    found = row_hashes(datasets.Dataset.from_dict({"a": list(range(n))}), ["a"])
    for seed in (0, 1):
        splits = split_by_rows(np.arange(n), shares(found, seed, "split"), FRACTIONS)
        for name, part in (("test", 0.3), ("validation", 0.2), ("train", 0.5)):
            assert abs(len(splits[name]) - part * n) < 4 * (part * (1 - part) * n) ** 0.5
    one, other = (set(split_by_rows(np.arange(n), shares(found, s, "split"), FRACTIONS)["test"]) for s in (0, 1))
    assert abs(len(one & other) - 0.09 * n) < 4 * (0.09 * 0.91 * n) ** 0.5


def patients_of(settings: DataSettings, number: int, clients: int) -> set[int]:
    """Which patients a client tests on."""
    client = open_partitions(settings, clients)(number)
    assert client.scaling is not None
    raw = client.features[client.splits["test"]].numpy() * client.scaling.std + client.scaling.mean
    return {round(float(each)) for each in raw[:, 0]}


def test_a_site_that_grows_tests_on_what_it_tested_on(tmp_path: Path) -> None:
    def settings(count: int, other: int) -> DataSettings:
        ages = [*range(count), *(1000 + i for i in range(other))]
        rows = {"site": ["a"] * count + ["b"] * other, "age": ages, "label": [age % 2 for age in ages]}
        file = tmp_path / f"{count}-{other}.parquet"
        datasets.Dataset.from_dict(rows).to_parquet(file)
        dealt = Partitioning("natural")
        return DataSettings(str(file), "age", "label", "site", partitioning=dealt, cache_dir=str(tmp_path / "cache"))

    before = patients_of(settings(40, 60), 1, 2)
    after = patients_of(settings(100, 60), 0, 2)
    assert before
    assert {age for age in after if age < 40} == before
    file = tmp_path / "few"
    datasets.Dataset.from_dict({"age": [1], "label": [0]}).to_parquet(file / "x.parquet")
    given = settings(40, 60)
    with pytest.raises(UserError, match=r"client 'few' has 1 samples, of which \d are for training: wanted at least 2"):
        open_node(given, str(file))


def test_images_go_by_their_files(tmp_path: Path) -> None:
    files = []
    for i in range(4):
        files.append(tmp_path / f"{i}.png")
        Image.fromarray(np.full((4, 4), 10 * (i % 3), np.uint8)).save(files[-1])
    data = datasets.Dataset.from_dict({"image": list(map(str, files)), "label": ["a", "b", "a", "a"]})
    found = row_hashes(data.cast_column("image", datasets.Image()), ["image", "label"])
    assert found[0] == found[3]
    assert len(set(found.tolist())) == 3


def test_samples_that_are_no_rows_go_by_their_arrays(tmp_path: Path) -> None:
    features = np.random.default_rng(0).normal(size=(6, 5)).astype(np.float32)
    features[4] = features[1]
    np.save(tmp_path / "features.npy", features)
    np.save(tmp_path / "labels.npy", np.array([0, 1, 0, 1, 1, 0]))
    found = array_hashes(tmp_path)
    assert found[1] == found[4]
    assert len(set(found.tolist())) == 5
