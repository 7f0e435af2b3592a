"""Tables: which columns they are, gaps, each client's own scaling, and raw rows for a model that a run left."""

from __future__ import annotations

import json
import math
import statistics as naive
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from fedham_flwr.core.errors import UserError
from fedham_flwr.data.client_data import ClientData
from fedham_flwr.data.clients import open_node, open_partition
from fedham_flwr.data.data_settings import DataSettings, Fractions, Partitioning
from fedham_flwr.data.kinds import table as tables
from fedham_flwr.data.kinds import table_decoding
from fedham_flwr.data.kinds.table import Column, Scaling

NAN = math.nan
COLOURS = ("red", "green", "blue")

Cached = Callable[..., DataSettings]


@pytest.fixture
def cached(tmp_path: Path) -> Cached:
    """Settings with a cache of the test's own."""
    return lambda **given: DataSettings(
        cache_dir=str(tmp_path / "cache"),
        **({"partitioning": Partitioning("iid"), "fractions": Fractions(0.0, 0.25)} | given),
    )


def write(path: Path, columns: dict[str, list[Any]], **labels: tuple[str, ...]) -> str:
    """A parquet file with these columns, some of them class labels."""
    import datasets

    table = datasets.Dataset.from_dict(columns)
    for name, names in labels.items():
        table = table.cast_column(name, datasets.ClassLabel(names=list(names)))
    table.to_parquet(path)
    return str(path)


MIXED: dict[str, list[Any]] = {
    "age": [50, 61, None, 43, 50, 61, 38, 43],
    "dose": [0.5, NAN, 1.5, None, 2.5, 0.5, 1.5, 2.5],
    "smokes": [True, False, None, True, True, False, False, True],
    "colour": [0, 1, 2, None, 0, -1, 2, 1],
    "ward": ["a", "a", "b", "b", "a", "a", "b", "b"],
    "label": [0, 1, 0, 1, 0, 1, 0, 1],
}


@pytest.fixture
def mixed(tmp_path: Path) -> str:
    """Eight rows of integers, floats, truth values and class labels, with gaps."""
    return write(tmp_path / "mixed.parquet", MIXED, colour=COLOURS, label=("no", "yes"))


def decoded(settings: DataSettings) -> np.ndarray:
    """What the cache holds before anyone's scaling."""
    (path,) = Path(settings.cache_dir).glob("data-*/features.npy")
    return np.load(path)


# ---- decoding --------------------------------------------------------------------------------------------------------


def test_a_list_of_values_is_a_row_as_an_array_is() -> None:
    one = tables.Scaling((tables.Column("age"), tables.Column("bmi")), (50.0, 25.0), (10.0, 5.0))
    assert torch.equal(one.inputs([[60, None]]), one.inputs([{"age": 60, "bmi": None}]))
    with pytest.raises(UserError, match=r"an array of shape \(1, 1\), wanted \(rows, 2\): age, bmi"):
        one.inputs([[60]])


def test_columns_of_every_kind_and_their_gaps(cached: Cached, mixed: str) -> None:
    client = open_node(cached(feature_column="age  dose smokes colour"), mixed)
    assert (client.kind, client.shape, client.classes) == ("table", (2, 6), ("no", "yes"))
    assert client.labels.tolist() == MIXED["label"]
    expected = [
        [50, 0.5, 1, 1, 0, 0],
        [61, NAN, 0, 0, 1, 0],
        [NAN, 1.5, NAN, 0, 0, 1],
        [43, NAN, 1, NAN, NAN, NAN],
        [50, 2.5, 1, 1, 0, 0],
        [61, 0.5, 0, NAN, NAN, NAN],
        [38, 1.5, 0, 0, 0, 1],
        [43, 2.5, 1, 0, 1, 0],
    ]
    found = decoded(cached())
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, np.array(expected, dtype=np.float32))
    assert client.scaling is not None
    names = (Column("age"), Column("dose"), Column("smokes"), Column("colour", COLOURS))
    assert client.scaling.columns == names


def test_one_column_of_numbers_is_a_table_and_its_name_may_have_blanks(cached: Cached, tmp_path: Path) -> None:
    path = write(tmp_path / "one.parquet", {"chest pain": [1, 2, 3, 4], "label": [0, 1, 0, 1]})
    client = open_node(cached(feature_column="chest pain"), path)
    assert client.shape == (2, 1)
    assert decoded(cached()).flatten().tolist() == [1, 2, 3, 4]


@pytest.mark.parametrize(("ending", "text"), [(".csv", "a,b,label\n1,,0\n2,,1\n"), (".jsonl", "")])
def test_a_column_without_any_value(cached: Cached, tmp_path: Path, ending: str, text: str) -> None:
    rows = [{"a": 1, "b": None, "label": 0}, {"a": 2, "b": None, "label": 1}]
    path = tmp_path / f"site{ending}"
    path.write_text(text or "\n".join(map(json.dumps, rows)))
    client = open_node(cached(feature_column="a b"), str(path))
    assert client.features[:, 1].isnan().all()
    assert client.scaling is not None
    assert (client.scaling.mean[1], client.scaling.std[1]) == (0, 1)


def test_columns_that_could_be_a_table_are_listed_and_none_is_guessed(cached: Cached, mixed: str) -> None:
    with pytest.raises(
        UserError,
        match=r"set feature-column: the data set has neither images nor a column text; name the columns that predict "
        r"the label, with blanks between, some of age \(int64\), dose \(float64\), smokes \(bool\), colour "
        r"\(ClassLabel\)\.$",
    ):
        open_node(cached(), mixed)


REFUSED = [
    ({"feature_column": "age ward"}, r"feature-column names 'ward', which holds 'a' in row 0, a word: .* a schema"),
    ({"feature_column": "age weight"}, r"feature-column names 'weight', but the columns are age \(int64\), dose"),
    (
        {"feature_column": "age, dose"},
        r"names 'age,', but the columns are .*; between the names .* are blanks, no commas",
    ),
    (
        {"feature_column": "age,dose"},
        r"is 'age,dose', but the columns are .*; between the names .* are blanks, no comm",
    ),
    ({"feature_column": "age", "label_column": "a,b"}, r"label-column is 'a,b', but .* are blanks, no commas\.$"),
    ({"feature_column": "weight"}, r"feature-column is 'weight', but the columns are age \(int64\), dose"),
    ({"feature_column": "age dose age"}, r"feature-column names 'age' twice"),
    ({"feature_column": "age label", "label_column": "label"}, r"feature-column names 'label', which is the label-col"),
    (
        {"feature_column": "age date"},
        r"feature-column names 'date' of kind time64\[us\], but must name one column of Image",
    ),
    ({"feature_column": "age far"}, r"column 'far' is infinite in row 2 \(or beyond 3\.4e38\): give it a number"),
    ({"feature_column": "age big"}, r"column 'big' is infinite in row 1 \(or beyond 3\.4e38\)"),
    ({"feature_column": "age colour label"}, r"set label-column: the data set has 2 columns of kind ClassLabel"),
]


@pytest.mark.parametrize(("changes", "message"), REFUSED)
def test_columns_that_do_not_fit(cached: Cached, tmp_path: Path, changes: dict[str, str], message: str) -> None:
    import datetime

    more = {
        "date": [datetime.time(12, 30)] * 8,
        "far": [0.0, 1.0, -math.inf, NAN, math.inf, 0, 0, 0],
        "big": [0.0, 1e39, *[0.0] * 6],
    }
    path = write(tmp_path / "rows.parquet", MIXED | more, colour=COLOURS, label=("no", "yes"))
    with pytest.raises(UserError, match=message):
        open_node(cached(**changes), path)


def test_the_client_column_is_no_label_and_no_feature(cached: Cached, tmp_path: Path) -> None:
    columns = {"x": [1.0, 2.0, 3.0, 4.0] * 2, "site": [0, 1] * 4, "ill": [0, 0, 1, 1] * 2}
    path = write(tmp_path / "rows.parquet", columns, site=("north", "south"), ill=("no", "yes"))
    natural = cached(dataset=path, feature_column="x", client_column="site", partitioning=Partitioning("natural"))
    clients = [open_partition(natural, number, 2) for number in range(2)]
    assert [client.name for client in clients] == ["north", "south"]
    assert clients[0].classes == ("no", "yes")
    with pytest.raises(UserError, match=r"feature-column names 'site', which is the client-column"):
        open_partition(replace(natural, feature_column="x site"), 0, 2)


# ---- classes at a node of its own ------------------------------------------------------------------------------------


@pytest.mark.parametrize("labels", [[0, 1, 0, 1], [0, 0, 0, 0], [0, 1, 2, 2], [False, True, True, False]])
def test_numbers_without_a_gap_are_classes_anywhere(cached: Cached, tmp_path: Path, labels: list[int]) -> None:
    path = write(tmp_path / "site.parquet", {"x": [1.0, 2.0, 3.0, 4.0], "label": labels})
    assert open_node(cached(feature_column="x"), path).labels.tolist() == [int(label) for label in labels]


@pytest.mark.parametrize(
    ("labels", "held"), [([1, 1, 1, 1], "1"), ([0, 2, 0, 2], "0, 2"), (["b", "a"] * 2, "a, b"), ([True] * 4, "True")]
)
def test_a_class_number_that_would_depend_on_the_others_is_refused(
    cached: Cached, tmp_path: Path, labels: list[Any], held: str
) -> None:
    path = write(tmp_path / "site.parquet", {"x": [1.0, 2.0, 3.0, 4.0], "label": labels})
    with pytest.raises(
        UserError, match=rf"the label-column of {path} holds {held}, whose class numbers would depend .*ClassLabel"
    ):
        open_node(cached(feature_column="x"), path)
    assert sum(open_partition(cached(dataset=path, feature_column="x"), 0, 1).counts().values()) == 4


def test_a_site_without_a_class_knows_it_by_the_schema(cached: Cached, tmp_path: Path) -> None:
    path = write(tmp_path / "site.parquet", {"x": [1.0, 2.0, 3.0, 4.0], "label": [1] * 4}, label=("no", "yes"))
    client = open_node(cached(feature_column="x"), path)
    assert client.labels.tolist() == [1] * 4
    assert client.label_counts("train") == [0, 3]


# ---- scaling ---------------------------------------------------------------------------------------------------------


def test_scaling_by_hand() -> None:
    # 1, 3, 5: mean 3, variance 8/3; constant 0.1 (whose float mean may differ from it by a bit); nothing at all.
    values = np.array([[1, 0.1, NAN], [NAN, 0.1, NAN], [3, 0.1, NAN], [5, NAN, NAN]])
    mean, std = table_decoding.statistics(values)
    assert mean.tolist() == [3.0, 0.1, 0.0]
    assert std.tolist() == [math.sqrt(8 / 3), 1.0, 1.0]
    scaled = tables.scale(np.array([[3 + math.sqrt(8 / 3), 0.6, 7], [NAN, -50, NAN]]), mean, std)
    np.testing.assert_allclose(scaled, [[1, 0.5, 7], [NAN, -10, NAN]], rtol=1e-7)


COLUMN = st.lists(st.none() | st.integers(-1000, 1000).map(lambda i: i / 8), min_size=1, max_size=12)


@given(COLUMN)
def test_scaling_against_python(column: list[float | None]) -> None:
    there = [value for value in column if value is not None]
    mean, std = table_decoding.statistics(np.array([[NAN if value is None else value] for value in column]))
    assert mean[0] == pytest.approx(naive.fmean(there) if there else 0.0)
    assert std[0] == pytest.approx(naive.pstdev(there) if len(set(there)) > 1 else 1.0)
    if len(set(there)) > 1:
        scaled = tables.scale(np.array(there)[:, None], mean, std)
        assert naive.fmean(scaled.flatten()) == pytest.approx(0, abs=1e-6)
        assert naive.pstdev(scaled.flatten()) == pytest.approx(1, abs=1e-6)


def sites(tmp_path: Path, name: str, **changes: float) -> str:
    """Forty rows of two sites; south's x is 100 times north's. `changes`: new values of x by row."""
    x = [float((7 * i) % 11) * (100 if i % 2 else 1) for i in range(40)]
    for row, value in changes.items():
        x[int(row[3:])] = value
    columns = {"x": x, "site": ["south" if i % 2 else "north" for i in range(40)], "label": [0, 0, 1, 1] * 10}
    return write(tmp_path / name, columns)


def north_and_south(cached: Cached, path: str) -> list[ClientData]:
    natural = Partitioning("natural")
    settings = cached(dataset=path, feature_column="x", client_column="site", partitioning=natural)
    return [open_partition(settings, number, 2) for number in range(2)]


def test_each_client_scales_by_its_own_training_split(cached: Cached, tmp_path: Path) -> None:
    north, south = north_and_south(cached, sites(tmp_path, "a.parquet"))
    for client, factor in ((north, 1), (south, 100)):
        train = client.features[client.splits["train"], 0].tolist()
        assert naive.fmean(train) == pytest.approx(0, abs=1e-6)
        assert naive.pstdev(train) == pytest.approx(1, abs=1e-6)
        raw = [float((7 * i) % 11) * factor for i in client.splits["train"].tolist()]
        assert client.scaling is not None
        assert client.scaling.mean[0] == pytest.approx(naive.fmean(raw))
        assert client.scaling.std[0] == pytest.approx(naive.pstdev(raw))
    # Another value in a test row changes that row alone; one in a training row changes the client, not the other one.
    tested, trained = int(north.splits["test"][0]), int(north.splits["train"][0])
    one, two = north_and_south(cached, sites(tmp_path, "b.parquet", **{f"row{tested}": 5.5}))
    assert one.scaling == north.scaling
    assert (one.features != north.features).flatten().nonzero().flatten().tolist() == [tested]
    one, two = north_and_south(cached, sites(tmp_path, "c.parquet", **{f"row{trained}": 500.0}))
    assert one.scaling != north.scaling
    assert two.scaling == south.scaling
    assert torch.equal(two.features[two.splits["test"]], south.features[south.splits["test"]])


def test_clients_map_the_same_pages(cached: Cached, tmp_path: Path) -> None:
    north, south = north_and_south(cached, sites(tmp_path, "a.parquet"))
    assert north.features.data_ptr() == south.features.data_ptr()


def test_a_row_that_nobody_has_is_missing(cached: Cached, tmp_path: Path) -> None:
    few = cached(dataset=sites(tmp_path, "a.parquet"), feature_column="x")
    few = replace(few, partitioning=Partitioning("iid", samples_per_client=8))
    clients = [open_partition(few, number, 2) for number in range(2)]
    dealt = torch.cat([index for client in clients for index in client.splits.values()])
    assert len(dealt) == 16
    assert int(clients[0].features.isnan().sum()) == 40 - 16
    assert not clients[0].features[dealt].isnan().any()


# ---- raw rows --------------------------------------------------------------------------------------------------------


def test_raw_rows_become_the_very_inputs_that_were_trained_on(cached: Cached, mixed: str) -> None:
    import pandas as pd

    names = ["age", "dose", "smokes", "colour"]
    client = open_node(cached(feature_column=" ".join(names)), mixed)
    assert client.scaling is not None
    wanted = torch.stack([client.features.nan_to_num(nan=0.0), client.features.isnan().float()], 1)
    by_name = {name: MIXED[name] for name in names}
    words = [None if code in (None, -1) else COLOURS[code] for code in MIXED["colour"]]
    frame = pd.DataFrame(by_name | {"age": pd.array(MIXED["age"], dtype="Int64"), "colour": words, "more": 1})
    array = np.array([[NAN if value is None else value for value in by_name[name]] for name in names]).T
    for rows in (by_name, frame, frame.to_dict("records"), pd.read_parquet(mixed), array, array.astype(object)):
        assert torch.equal(client.scaling.inputs(rows), wanted)


SCALING = Scaling((Column("age"), Column("colour", COLOURS)), (50.0, 0.5, 0.25, 0.25), (10.0, 0.5, 1.0, 1.0))


def test_inputs_by_hand() -> None:
    x = SCALING.inputs([{"age": 65, "colour": "red"}, {"age": None, "colour": 2}, {"age": 1e9, "colour": None}])
    assert x[:, 0].tolist() == [[1.5, 1, -0.25, -0.25], [0, -1, -0.25, 0.75], [10, 0, 0, 0]]
    assert x[:, 1].tolist() == [[0, 0, 0, 0], [1, 0, 0, 0], [0, 1, 1, 1]]
    assert x.dtype == torch.float32


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ({"age": [50]}, r"the rows have no column 'colour': wanted all columns that the model has"),
        ([{"age": 50}], r"the rows have no column 'colour'"),
        ({"age": ["old"], "colour": [0]}, r"column 'age' of the rows: .*'old'; wanted numbers"),
        ({"age": [50], "colour": ["pink"]}, r"column 'colour' of the rows: .*; wanted one of red, green, blue, or its"),
        ({"age": [50], "colour": [3]}, r"column 'colour' has the value 3, but 3 class labels"),
        ({"age": [50], "colour": [0.5]}, r"column 'colour' has the value 0\.5, but 3 class labels"),
        ({"age": [math.inf], "colour": [0]}, r"column 'age' is infinite in row 0"),
        (np.zeros((4, 3)), r"the rows are an array of shape \(4, 3\), wanted \(rows, 2\): age, colour"),
        (np.zeros(2), r"the rows are an array of shape \(2,\), wanted \(rows, 2\): age, colour"),
    ],
)
def test_raw_rows_that_do_not_fit(rows: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        SCALING.inputs(rows)


def test_the_scaling_is_in_the_header_of_a_model_file_bit_for_bit(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    odd = replace(SCALING, mean=(1 / 3, 2**-1074, 1e300, 0.1))
    save_file({"x": torch.zeros(1)}, path, odd.label())
    assert tables.read_scaling(path) == odd
    save_file({"x": torch.zeros(1)}, path)
    with pytest.raises(UserError, match=r"model\.safetensors says nothing of a table's columns: wanted the model of"):
        tables.read_scaling(path)
    path.write_text("x")
    with pytest.raises(UserError, match=r"model\.safetensors cannot be read as a model"):
        tables.read_scaling(path)
