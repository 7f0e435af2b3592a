"""Files of rows as sites write them (tests/tables): what each value becomes, and what is said of the others."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedham_flwr.core.errors import UserError
from fedham_flwr.data.clients import open_partition
from fedham_flwr.data.csv_places import place
from fedham_flwr.data.data_settings import DataSettings, Fractions, Partitioning
from fedham_flwr.data.kinds.table_decoding import encode
from fedham_flwr.data.kinds.table_settings import TableSettings
from fedham_flwr.data.kinds.table_values import number
from fedham_flwr.data.sources import load

TABLES = Path(__file__).parent / "tables"
NAN = math.nan
A, B, LABELS = [1.5, 2, NAN, -4, 1500, 0.25], [10, 20, 30, 40, 50, 60], ["0", "1"] * 3

Decoded = tuple[np.ndarray, list[str]]


@pytest.fixture
def decoded(tmp_path: Path) -> Callable[..., Decoded]:
    """Features before scaling, and labels by their names, of one of the files."""

    def decode(name: str, feature: str = "a b", label: str = "", target: str = "auto", **table: Any) -> Decoded:
        cache = tmp_path / re.sub(r"\W", "", f"{name}{feature}{label}{sorted(table.items())}")
        given = DataSettings(
            str(TABLES / name),
            feature_column=feature, label_column=label, target=target, cache_dir=str(cache),
            fractions=Fractions(0, 0.25), table=TableSettings(**table), partitioning=Partitioning("iid"),
        )  # fmt: skip
        node = open_partition(given, 0, 1)
        (file,) = cache.glob("data-*/features.npy")
        labels = node.labels.tolist()
        return np.load(file), [node.classes[code] for code in labels] if node.target == "class" else labels

    return decode


# ---- one table in many spellings -------------------------------------------------------------------------------------

SPELLINGS = [
    "plain.csv", "mark.csv", "utf16.csv", "windows.csv", "comma.csv", "bars.csv", "tabs.tsv", "quoted.csv", "blank.csv",
    "trailing.csv", "percent.csv", "minus.csv", "packed.csv.gz", "ordered",
]  # fmt: skip


@pytest.mark.parametrize("name", SPELLINGS)
def test_every_spelling_gives_the_same_numbers(decoded: Callable[..., Decoded], name: str) -> None:
    features, labels = decoded(name)
    np.testing.assert_array_equal(features, np.array([A, B], np.float32).T)
    assert labels == LABELS


def test_a_folder_has_train_first_and_names_what_is_left_out(
    decoded: Callable[..., Decoded], caplog: pytest.LogCaptureFixture
) -> None:
    features, labels = decoded("split")
    np.testing.assert_array_equal(features, np.array([A, B], np.float32).T)
    assert labels == LABELS
    decoded("ordered")
    assert [message for message in caplog.messages if "left out" in message] == [
        f"dataset {TABLES / 'ordered'}: left out: 2.csv.bak, notes.txt"
    ]


def test_what_had_to_be_understood_is_said_once(
    decoded: Callable[..., Decoded], caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("comma.csv", "bars.csv", "percent.csv", "plain.csv"):
        decoded(name)
    assert caplog.messages == [
        "column 'a': 1.500 is 1500", "column 'a': 1,500 is 1500", "column 'a': percent signs are dropped",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "separator", "decimal", "value"), [("either.csv", ";", ",", 1.64), ("either.csv", ";", ".", 1640)]
)
def test_settings_decide_what_is_not_plain(
    decoded: Callable[..., Decoded], name: str, separator: str, decimal: str, value: float
) -> None:
    assert decoded(name, "a", separator=separator, decimal=decimal)[0][0, 0] == np.float32(value)
    assert decoded("latin.csv", "a", encoding="latin1")[0].flatten().tolist() == [1, 2]
    assert np.isnan(decoded("word.csv", "a", missing="x abc")[0]).sum() == 1


REFUSED = [
    (
        "more.csv",
        r"more\.csv, line 3: 4 fields are found \(1,2,3,0\), and wanted are 3, as the header has \(a, b, label",
    ),
    ("fewer.csv", r"fewer\.csv, line 4: 2 fields are found \(1,0\), and wanted are 3"),
    ("lines.csv", r"lines\.csv, line 7: 2 fields are found \(one,3\), and wanted are 3"),
    ("open.csv", r"open\.csv, line 2: .*a quote may not be closed"),
    ("twice.csv", r"twice\.csv, line 1: two columns are called 'a'"),
    ("unnamed.csv", r"unnamed\.csv, line 1: column 1 of 3 has no name \(, a, label\)"),
    ("headless.csv", r"headless\.csv begins with numbers \(1, 2, 0\): wanted a first line with the names"),
    ("empty.csv", r"empty\.csv is empty: wanted a first line with the names of the columns"),
    ("header.csv", r"header\.csv has no rows below its header"),
    ("latin.csv", r'latin\.csv, line 3: the byte 0xf6 is no text in UTF-8; set table\.encoding .* "latin1"'),
    (
        "either.csv",
        r"column 'a' holds '1,640' in either\.csv, line 2, where the comma may be before decimals or between",
    ),
    ("mixed.csv", r"column 'b' holds '1\.5' in mixed\.csv, line 2; wanted a number with a comma before its decimals"),
    ("word.csv", r"names 'a', which holds 'abc' in word\.csv, line 5, no number: say what it holds in a schema"),
    ("half.csv", r"column 'a' holds '0\.5' in half\.csv, line 3; wanted a percent sign in every row, or in none"),
    ("far.csv", r"column 'a' is infinite in far\.csv, line 3 \(or beyond 3\.4e38\)"),
]


@pytest.mark.parametrize(("name", "message"), REFUSED)
def test_what_does_not_fit_is_named_by_file_line_and_value(
    decoded: Callable[..., Decoded], name: str, message: str
) -> None:
    with pytest.raises(UserError, match=message) as told:
        decoded(name, "a b" if name == "mixed.csv" else "a")
    assert "An error occurred" not in str(told.value)


@pytest.mark.parametrize(("ending", "content", "reason"), [
    (".jsonl", '{"a": 1, "label": 0}\n{"a": 2, "label"\n', r"JSON"),
    (".parquet", "PAR1 no", r"can't be read: .*[Pp]arquet"),
])  # fmt: skip
def test_other_readers_give_their_own_reason(tmp_path: Path, ending: str, content: str, reason: str) -> None:
    path = tmp_path / f"rows{ending}"
    path.write_text(content)
    with pytest.raises(UserError, match=rf"rows{ending} can't be read: ") as told:
        load(str(path), str(tmp_path / "copy"))
    assert re.search(reason, str(told.value))
    assert "An error occurred" not in str(told.value)
    good = datasets.Dataset.from_dict({"a": [1.0], "label": [0]})
    folder = tmp_path / "set"
    folder.mkdir()
    path.rename(folder / path.name)
    good.to_parquet(folder / "good.parquet") if ending == ".parquet" else good.to_json(folder / "good.jsonl")
    with pytest.raises(UserError, match=rf"rows{ending} can't be read: "):  # in a folder too
        load(str(folder), str(tmp_path / "copy"))


# ---- which columns ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("feature", "names"), [("*", ["a", "b"]), ("all -b", ["a"]), ("'b' \"a\"", ["b", "a"])])
def test_columns_by_a_star_or_in_quotes(decoded: Callable[..., Decoded], feature: str, names: list[str]) -> None:
    wanted = {"a": A, "b": B}
    np.testing.assert_array_equal(
        decoded("plain.csv", feature)[0], np.array([wanted[name] for name in names], np.float32).T
    )


def test_targets_that_are_texts(decoded: Callable[..., Decoded]) -> None:
    assert decoded("numbers.csv", "a")[1] == ["3", "10", "3", "1"]
    _, values = decoded("numbers.csv", "a", "y", "value")
    assert values == [-0.5, 1000, 2000, 7]
    with pytest.raises(UserError, match=r"label-column 'y' holds '-0\.5' in numbers\.csv, line 2, which is no class"):
        decoded("numbers.csv", "a", "y")


# ---- against pandas --------------------------------------------------------------------------------------------------

CELLS = st.one_of(
    st.integers(-(10**20), 10**20).map(str),
    st.floats(-1e30, 1e30).map(repr),
    st.sampled_from(["", "NA", "1e3", " 7 "]),
    st.text(st.sampled_from("ab ;,\"\n'é.-1"), max_size=4),
)  # fmt: skip


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_a_fuzzed_table_gives_what_pandas_gives_or_is_refused_by_its_place(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    import csv

    import pandas as pd

    folder = tmp_path_factory.mktemp("fuzz")
    rows = data.draw(st.lists(st.tuples(CELLS, CELLS), min_size=2, max_size=6))
    file = folder / "site.csv"
    with file.open("w", newline="", encoding="utf-8") as opened:
        writer = csv.writer(opened)
        writer.writerows([("x", "y", "label"), *((*row, "01"[at % 2]) for at, row in enumerate(rows))])
    text = file.read_text(encoding="utf-8")
    frame = pd.read_csv(io.StringIO(text), dtype=str, keep_default_na=False)
    read = load(str(file), str(folder / "copy"))
    assert [[cell or "" for cell in read[name]] for name in frame] == [frame[name].tolist() for name in frame]
    try:
        found = encode(read, {"columns": [{"name": "x", "names": []}, {"name": "y", "names": []}]})
    except UserError as error:
        refused = re.search(r"column '([xy])' holds '(.*)' in (site\.csv, line \d+); wanted", str(error), re.DOTALL)
    else:
        numbers = pd.read_csv(io.StringIO(text), skipinitialspace=True, na_values=["-", ".", "?"], thousands=",")
        np.testing.assert_allclose(found, numbers[["x", "y"]].to_numpy(np.float32), rtol=1e-6)
        return
    assert refused
    row = next(row for row in range(len(read)) if place(read, row) == refused[3])
    assert read[refused[1]][row].strip() == refused[2]
    assert number(refused[2]) is None
