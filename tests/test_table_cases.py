"""The tables of users that went wrong once: each reads as `plain.csv` does, or is refused with what is wrong."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import SHARED_DATA

from fedham_flwr.core.errors import UserError
from fedham_flwr.data.clients import open_node, open_partition
from fedham_flwr.data.data_settings import DataSettings, Fractions, Partitioning
from fedham_flwr.data.kinds.table_settings import TableSettings

CASES = SHARED_DATA.parent / "cases" / "tables"
Opened = tuple[np.ndarray, list[str]]
"""Features before scaling, and each row's label by its name."""

pytestmark = pytest.mark.skipif(not CASES.is_dir(), reason=f"{CASES} is not there")


@pytest.fixture
def opened(tmp_path: Path) -> Callable[..., Opened]:
    """What is decoded of one of the files."""

    def open_it(name: str, feature: str = "age chol", label: str = "label", **given: str) -> Opened:
        cache = tmp_path / "cache" / name
        table = TableSettings(**given)  # type: ignore[arg-type]
        data = DataSettings(
            str(CASES / name), feature, label, partitioning=Partitioning("iid"), fractions=Fractions(0, 0.25),
            cache_dir=str(cache), table=table,
        )  # fmt: skip
        client = open_partition(data, 0, 1)
        (features,) = cache.glob("data-*/features.npy")
        return np.load(features), [client.classes[code] for code in client.labels.tolist()]

    return open_it


def plain() -> tuple[np.ndarray, list[str], list[str]]:
    """What the tables should read as, by the plainest reader: numbers, labels, hospitals."""
    rows = [line.split(",") for line in (CASES / "plain.csv").read_text().splitlines()[1:]]
    return np.array([row[1:3] for row in rows], np.float32), [row[3] for row in rows], [row[0] for row in rows]


@pytest.mark.parametrize("name", ["plain.csv", "padded.csv", "tab.csv", "trailing.csv", "floatlabel.csv"])
def test_it_reads_as_the_plain_one(opened: Callable[..., Opened], name: str) -> None:
    features, labels = opened(name)
    wanted, classes, _ = plain()
    np.testing.assert_array_equal(features, wanted)
    assert labels == classes


def test_the_separator_and_the_decimal_comma_are_found(opened: Callable[..., Opened]) -> None:
    features, labels = opened("semicolon.csv")
    wanted, classes, _ = plain()
    np.testing.assert_array_equal(features, wanted + np.array([0.5, 0], np.float32))  # its ages are a half more
    assert labels == classes


@pytest.mark.parametrize(("name", "encoding"), [("utf16.csv", "utf-16-le"), ("latin1.csv", "latin1")])
def test_another_encoding_is_named_and_read_by_the_setting(
    opened: Callable[..., Opened], name: str, encoding: str
) -> None:
    with pytest.raises(UserError, match=rf'{name}, line \d+.*set table\.encoding.*"{encoding}"'):
        opened(name)
    np.testing.assert_array_equal(opened(name, encoding=encoding)[0], plain()[0])


def test_rows_that_do_not_fit_the_header_are_named(opened: Callable[..., Opened]) -> None:
    with pytest.raises(UserError, match=r"decimal\.csv, line 2: 5 fields are found \(north,85,3,164,1\), and wanted a"):
        opened("decimal.csv")
    with pytest.raises(UserError, match=r"ragged\.csv, line 102: 5 fields are found .*, and wanted are 4, as the head"):
        opened("ragged.csv")


def test_names_with_blanks_stand_in_quotes(opened: Callable[..., Opened]) -> None:
    np.testing.assert_array_equal(opened("spaces.csv", "'age (years)' 'chol mg/dl'")[0], plain()[0])
    with pytest.raises(UserError, match=r"names 'age', but .*; a name with blanks needs quotes: 'age \(years\)'"):
        opened("spaces.csv", "age chol")


def test_large_numbers_thousands_and_percent(opened: Callable[..., Opened], caplog: pytest.LogCaptureFixture) -> None:
    wanted = plain()[0]
    huge = wanted * np.array([1, 1e17], np.float32)
    np.testing.assert_allclose(opened("hugeint.csv")[0], huge, rtol=1e-6)
    np.testing.assert_array_equal(opened("thousand.csv")[0], wanted * np.array([1, 10], np.float32))
    np.testing.assert_array_equal(opened("pct.csv")[0], wanted)
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING] == [
        "column 'chol': integers beyond 64 bits are read as floats",
        "column 'chol': 1,640 is 1640",
        "column 'chol': percent signs are dropped",
    ]


def test_question_marks_are_gaps(opened: Callable[..., Opened]) -> None:
    features, wanted = opened("question.csv")[0], plain()[0]
    asked = np.array(["?" in line for line in (CASES / "question.csv").read_text().splitlines()[1:]])
    assert asked.any()
    assert np.array_equal(np.isnan(features[:, 1]), asked)
    np.testing.assert_array_equal(features[~asked], wanted[~asked])


def test_rows_without_a_label(opened: Callable[..., Opened], caplog: pytest.LogCaptureFixture) -> None:
    wanted, classes, _ = plain()
    lines = (CASES / "nolabelvals.csv").read_text().splitlines()[1:]
    there = np.array([not line.endswith(",") for line in lines])
    count = int((~there).sum())
    with pytest.raises(UserError, match=rf"label-column .label. has {count} empty rows, .* first is nolabelvals\.csv"):
        opened("nolabelvals.csv")
    features, labels = opened("nolabelvals.csv", unlabelled="leave-out")
    np.testing.assert_array_equal(features, wanted[there])
    assert labels == [label for label, kept in zip(classes, there, strict=True) if kept]
    assert f"label-column 'label': {count} of 240 rows have no label, and are left out" in caplog.text


def test_a_date_is_days_and_cycles(opened: Callable[..., Opened]) -> None:
    features, _ = opened("date.csv", "when")
    first = (np.datetime64("2024-03-12") - np.datetime64("2000-01-01")).astype(int)
    month, weekday = 2 * np.pi * 2 / 12, 2 * np.pi * 1 / 7  # March, a Tuesday
    expected = [first, np.sin(month), np.cos(month), np.sin(weekday), np.cos(weekday)]
    np.testing.assert_allclose(features[0], expected, rtol=1e-6, atol=1e-7)


def test_a_label_that_is_the_number_of_the_row(opened: Callable[..., Opened], caplog: pytest.LogCaptureFixture) -> None:
    opened("idlabel.csv")
    assert "label-column 'label' has 240 classes in 240 rows: is it the row's number?" in caplog.text


def test_folders(opened: Callable[..., Opened], caplog: pytest.LogCaptureFixture) -> None:
    wanted, classes, hospitals = plain()
    order = [row for name in ("north", "south", "west") for row in range(240) if hospitals[row] == name]
    features, labels = opened("dir_bak")
    np.testing.assert_array_equal(features, wanted[order])  # south has its columns in another order
    assert labels == [classes[row] for row in order]
    assert [r.getMessage() for r in caplog.records if "left out" in r.getMessage()] == [
        f"dataset {(CASES / 'dir_bak').resolve()}: left out: north.csv.bak"
    ]
    halves = np.array([hospitals[row] == "south" for row in order]) * np.float32(0.5)
    features, _ = opened("dir_types")
    np.testing.assert_array_equal(features, wanted[order] + np.stack([halves, 0 * halves], axis=1))


def test_a_client_id_stays_the_text_that_it_was(tmp_path: Path) -> None:
    settings = DataSettings(
        str(CASES / "zeropad.csv"), "age chol", "label", "hospital", partitioning=Partitioning("natural"),
        cache_dir=str(tmp_path),
    )  # fmt: skip
    assert sorted(open_partition(settings, number, 3).name for number in range(3)) == ["001", "01", "1"]


def test_a_node_reads_its_own_file(tmp_path: Path) -> None:
    node = open_node(DataSettings(feature_column="* -hospital", cache_dir=str(tmp_path)), str(CASES / "padded.csv"))
    assert node.scaling is not None
    assert node.scaling.names == ("age", "chol")
