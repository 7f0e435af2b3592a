"""Schemas: what each kind of column becomes, what is refused, and the draft that a site's data give."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch

from fedham_flwr.cli import main
from fedham_flwr.core.errors import UserError
from fedham_flwr.data.client_data import ClientData
from fedham_flwr.data.clients import open_node, open_partition
from fedham_flwr.data.data_settings import DataSettings, Fractions, Partitioning
from fedham_flwr.data.kinds.table import Scaling
from fedham_flwr.data.kinds.table_decoding import encode
from fedham_flwr.data.kinds.table_settings import TableSettings
from fedham_flwr.data.schema import read_schema
from fedham_flwr.data.sources import load

TABLES = Path(__file__).parent / "tables"
NAN = np.nan
DAY = np.datetime64("2000-01-01")


@pytest.fixture
def opened(tmp_path: Path) -> Callable[..., tuple[ClientData, np.ndarray]]:
    """A node's data and its features before scaling."""

    def open_it(
        path: Path = TABLES / "kinds.csv", schema: str = str(TABLES / "schema.toml"), **given: Any
    ) -> tuple[ClientData, np.ndarray]:
        table = TableSettings(schema=schema, **{k: given.pop(k) for k in ("categories", "missing") if k in given})
        settings = DataSettings(
            str(path), cache_dir=str(tmp_path / "cache"), fractions=Fractions(0, 0.25), table=table,
            partitioning=Partitioning("iid"), **given,
        )  # fmt: skip
        node = open_node(settings, str(path)) if schema else open_partition(settings, 0, 1)
        newest = max((tmp_path / "cache").glob("data-*/features.npy"), key=lambda file: file.stat().st_mtime_ns)
        return node, np.load(newest)

    return open_it


def wave(turn: float) -> tuple[float, float]:
    return float(np.sin(2 * np.pi * turn)), float(np.cos(2 * np.pi * turn))


def days(text: str) -> float:
    return float((np.datetime64(text) - DAY) / np.timedelta64(1, "D"))


def test_every_kind_becomes_numbers(opened: Callable[..., Any], caplog: pytest.LogCaptureFixture) -> None:
    node, features = opened()
    assert node.classes == ("low", "high", "highest")
    assert node.labels.tolist() == [0, 1, 0, 1, 0, 1]
    gap = [NAN] * 3
    sex = [[0, 1, 0], [1, 0, 0], [0, 0, 1], gap, [0, 1, 0], [1, 0, 0]]  # m is none of F, M
    flag = [1, 0, 1, NAN, 0, 1]
    size = [[0, 0], [1, 0], [0.5, 0], [NAN, NAN], [NAN, 1], [0, 0]]  # huge is none of small, medium, large
    dates = ["2024-01-31", "2024-03-31", "2024-04-01", "", "2024-05-01", "2024-06-02"]
    day = [(days(text), *wave((int(text[5:7]) - 1) / 12)) if text else gap for text in dates]
    code = [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1], [0, 0, 0, 1], [0, 0, 0, 1]]
    expected = [[*sex[i], flag[i], *size[i], *day[i], *code[i]] for i in range(6)]
    np.testing.assert_allclose(features, np.array(expected, np.float32), rtol=1e-6, atol=1e-7)
    said = [message for message in caplog.messages if "none of its categories" in message]
    assert said == [
        "column 'sex' has m in 1 row, which is none of its categories: it counts as another word",
        "column 'size' has huge in 1 row, which is none of its categories: it counts as another word",
        "column 'code' has 2 in 2 rows and 10 in 1 row, which are none of its categories: they count as another word",
    ]
    assert node.meanings[1] == (
        "sex=F=M (category)", "flag (boolean)", "size=small=medium=large (ordered)", "day (date month)",
        "code=001=01=1 (category)",
    )  # fmt: skip
    schema = read_schema(str(TABLES / "schema.toml"))
    assert schema is not None
    assert node.meanings[2] == (schema.digest,)


def test_new_rows_get_the_bits_of_training(opened: Callable[..., Any], tmp_path: Path) -> None:
    node, _ = opened()
    rows = load(str(TABLES / "kinds.csv"), str(tmp_path / "copy"))
    made = encode(rows, node.recipe)
    assert made.tobytes() == node.features.numpy().tobytes()
    # Any part of them, in any order of columns, and through the scaling in a model file.
    some = encode(rows.select([4]).select_columns(["code", "size", "day", "flag", "sex"]), node.recipe)
    assert some.tobytes() == node.features[4:5].numpy().tobytes()
    scaling = Scaling(node.scaling.columns, node.scaling.mean, node.scaling.std)
    inputs = scaling.inputs([{**row, "when": 1} for row in rows])
    assert torch.equal(inputs[:, 0], node.features.nan_to_num(nan=0.0))
    with pytest.raises(
        UserError, match=r"the rows lack the columns 'flag', 'size', which the model has; theirs are sex"
    ):
        encode(rows.select_columns(["sex", "day", "code"]), node.recipe)
    wrong = datasets.Dataset.from_dict({**rows.to_dict(), "flag": ["perhaps"] * 6})
    with pytest.raises(UserError, match=r"column 'flag' holds 'perhaps' in row 0; wanted yes or no"):
        encode(wrong, node.recipe)


def test_without_a_schema_kinds_are_found_and_words_only_by_the_setting(opened: Callable[..., Any]) -> None:
    _, features = opened(schema="", feature_column="flag stamp")
    assert features[:, 0].tolist()[:3] == [1, 0, 1]
    moments = ["2024-01-31T06:00", "2024-02-29T18:00", "2024-03-31T12:00", "", "2024-06-30T00:00", "2024-12-31T23:59"]
    np.testing.assert_allclose(features[:, 1], [days(m) if m else NAN for m in moments], rtol=1e-7)
    np.testing.assert_allclose(features[1, 2:], [*wave(1 / 12), *wave(3 / 7), *wave(0.75)], atol=1e-5)
    with pytest.raises(
        UserError, match=r"names 'sex', which holds 'F' in kinds\.csv, line 3, a word: say what it holds"
    ):
        opened(schema="", feature_column="flag sex")
    node, features = opened(schema="", feature_column="flag sex", categories="found")
    assert node.meanings[1] == ("flag (boolean)", "sex=F=M=m (category)")
    assert features[0].tolist() == [1, 0, 1, 0, 0]


def changed(folder: Path, old: str, new: str) -> str:
    """The schema with something else in it."""
    path = folder / "changed.toml"
    text = (TABLES / "schema.toml").read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    return str(path)


WRONG = [
    ('kind = "boolean"', 'kind = "number"', r"column 'flag' holds 'yes' in kinds\.csv, line 2; wanted a n"),
    (
        'kind = "category"\ncategories = ["001", "01", "1"]',
        'kind = "number"\nrange = [0, 9.5]',
        r"column 'code' has 10 in kinds\.csv, line 6; wanted, as the schema says, a number from 0 to 9\.5",
    ),
    ("[columns.flag]", "[columns.flags]", r"table\.schema declares 'flags', but the columns are sex"),
    (
        '"low", "high", "highest"',
        '"low", "highest"',
        r"label-column 'label' holds 'high' in kinds\.csv, line 3; wanted, as the schema says, one of low, highest",
    ),
    (
        'parts = ["month"]',
        'format = "%d.%m.%Y"',
        r"column 'day' holds '2024-01-31' in kinds\.csv, line 2; wanted a date as %d",
    ),
    ('["month"]', '["minute"]', r"\[columns\.\"day\"\] has parts = \['minute'\]; wanted some of month"),
    ('kind = "boolean"', 'kind = "bool"', r"changed\.toml: \[columns\.\"flag\"\] has kind = 'bool'; wanted one of n"),
    ('kind = "boolean"', 'kind = "number"\nrnage = [0, 1]', r"says 'rnage' \(did you mean range\?\); wanted kind, ran"),
    ('categories = ["F", "M"]', "categories = []", r"has categories = \[\]; wanted a list of names"),
    ('categories = ["F", "M"]', 'categories = ["F", "F"]', r"has 'F' twice in categories"),
    ("# of kinds", "of kinds", r"changed\.toml is no TOML file: "),
]


@pytest.mark.parametrize(("old", "new", "message"), WRONG)
def test_what_does_not_fit(opened: Callable[..., Any], tmp_path: Path, old: str, new: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        opened(schema=changed(tmp_path, old, new))


def test_typed_columns_by_a_schema_and_lists(opened: Callable[..., Any], tmp_path: Path) -> None:
    path = tmp_path / "typed.parquet"
    columns = {
        "cp": [1.0, 4.0, None, 9.0], "sex": [0, 1, 1, 0], "beats": [[1.0, 2.0], [3.0, 4.0], None, [5.0, None]],
        "label": [0, 1, 0, 1],
    }  # fmt: skip
    table = datasets.Dataset.from_dict(columns).cast_column("sex", datasets.ClassLabel(names=["m", "f"]))
    table.to_parquet(path)
    schema = tmp_path / "typed.toml"
    words = 'kind = "category"\ncategories = '
    schema.write_text(f'[columns.cp]\n{words}[1, 4]\n[columns.sex]\n{words}["f", "m"]\n')
    _, features = opened(path, str(schema))
    gap = [NAN] * 3
    expected = [[1, 0, 0, 0, 1, 0], [0, 1, 0, 1, 0, 0], [*gap, 1, 0, 0], [0, 0, 1, 0, 1, 0]]
    np.testing.assert_array_equal(features, np.array(expected, np.float32))
    node, features = opened(path, "", feature_column="beats")
    np.testing.assert_array_equal(features, np.array([[1, 2], [3, 4], [NAN, NAN], [5, NAN]], np.float32))
    assert node.meanings[1] == ("beats (list 2)",)


def test_a_draft_of_a_schema_fits_the_data_that_it_is_of(opened: Callable[..., Any], tmp_path: Path) -> None:
    file, rows = tmp_path / "site.csv", ["id;sex;age (years);seen;free;diagnosis"]
    sexes, found = "MFf" * 4, ("sick", "well") * 6
    rows += [f"{100 + i};{sexes[i]};{40 + i},5;2024-03-{1 + i:02d};note number {i};{found[i]}" for i in range(12)]
    file.write_text("\n".join(rows) + "\n")
    target = tmp_path / "schema.toml"
    assert main(["schema", str(file), "--label", "diagnosis", "-o", str(target)]) == 0
    text = target.read_text()
    drafted = tomllib.loads(text)
    assert drafted == {
        "columns": {
            "sex": {"kind": "category", "categories": ["F", "M", "f"]},
            "age (years)": {"kind": "number"},
            "seen": {"kind": "date"},
        },
        "label": {"column": "diagnosis", "kind": "class", "classes": ["sick", "well"]},
    }
    for said in ("F 4, M 4, f 4", "F, f differ by case only", "from 40.5 to 51.5, 12 different values",
                 "an identifier?): left out", "another one: an identifier?", "sick 6, well 6"):  # fmt: skip
        assert said in text
    node, features = opened(file, str(target))
    assert features.shape == (12, 4 + 1 + 5)
    assert json.loads(json.dumps(node.recipe["columns"])) == node.recipe["columns"]
    assert main(["schema", str(file), "-o", str(target)]) == 1  # it is there already
