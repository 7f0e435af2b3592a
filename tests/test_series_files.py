"""Recordings out of .csv files: numbers as people write them, times, and what is said of what is neither."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedham_flwr.core.errors import UserError
from fedham_flwr.data import row_hashes
from fedham_flwr.data.clients import open_partition
from fedham_flwr.data.data_settings import DataSettings, Partitioning
from fedham_flwr.data.kinds.recordings import Recordings, cut, read
from fedham_flwr.data.kinds.series_settings import SeriesSettings
from fedham_flwr.data.kinds.table_settings import TableSettings
from fedham_flwr.data.sources import load


def written(path: Path, times: list[str], x: list[str], y: list[str]) -> str:
    lines = [";".join(row) for row in zip(times, x, y, ["0", "1"] * (len(x) // 2), strict=True)]
    path.write_text("\n".join(["at;x;y;label", *lines]))
    return str(path)


MINUTES = [f"2024-05-31 08:{minute:02d}:00" for minute in range(8)]
X = ["1.058,5", "58,25", "?", "60,5", "61,0", "62,5", "63,25", "NA"]
Y = ["1", "2", "n.k.", "4", "5", "6", "7", "8"]
RECIPE: dict[str, Any] = {
    "columns": [{"name": "x"}, {"name": "y"}], "recording": "", "time": "at", "missing": ["n.k."],
}  # fmt: skip


def test_numbers_are_read_as_those_of_a_table(tmp_path: Path) -> None:
    found = read(load(written(tmp_path / "a.csv", MINUTES, X, Y), str(tmp_path / "copy")), RECIPE)
    np.testing.assert_allclose(found.values[:, 0], [1058.5, 58.25, np.nan, 60.5, 61, 62.5, 63.25, np.nan])
    np.testing.assert_allclose(found.values[:, 1], [1, 2, np.nan, 4, 5, 6, 7, 8])
    assert found.time is not None
    assert np.diff(found.time).tolist() == [60.0] * 7


def test_rows_of_one_time_are_said_to_be_mixed(caplog: pytest.LogCaptureFixture) -> None:
    found = Recordings(np.zeros((5, 1), np.float32), np.array([0, 0, 1, 1, 1]), ["a", "b"], np.array([0.0, 1, 5, 5, 5]))
    with caplog.at_level(logging.WARNING, logger="fedham_flwr"):
        cut(found, np.array([0, 0, 0, 0, 1]), {"length": 1, "stride": 1, "gap": 0})
    assert "1 rows have the time of another one of the same recording, first in 'b': if they are" in caplog.text


@pytest.mark.parametrize(
    ("times", "x", "message"),
    [
        (MINUTES, [*X[:-1], "loose"], r"column 'x' holds 'loose' in a\.csv, line 9; wanted a number"),
        ([*MINUTES[:-1], "later"], X, r"series\.time 'at' holds 'later' in a\.csv, line 9, but must hold numbers or"),
        ([*MINUTES[:-1], "?"], X, r"series\.time 'at' is empty in a\.csv, line 9, but every row needs a time"),
        (["1", "2", "3", "4", "5", "6", "7", "x8"], X, r"column 'at' holds 'x8' in a\.csv, line 9; wanted a number"),
    ],
)
def test_what_is_no_number_or_no_time_is_named(tmp_path: Path, times: list[str], x: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        read(load(written(tmp_path / "a.csv", times, x, Y), str(tmp_path / "copy")), RECIPE)


def test_a_step_that_is_as_long_as_the_gap_is_none(tmp_path: Path) -> None:
    times = [f"{tenth / 10:.1f}".replace(".", ",") for tenth in range(8)]  # 0.7 - 0.6 is above 0.1 as floats are
    path = written(tmp_path / "a.csv", times, X, Y)
    settings = DataSettings(
        path,
        cache_dir=str(tmp_path / "cache"),
        partitioning=Partitioning("iid"),
        feature_column="x y",
        table=TableSettings(missing="n.k."),
        series=SeriesSettings(2, time="at", gap=0.1),
    )
    client = open_partition(settings, 0, 1)
    assert sum(client.counts().values()) == 4
    assert client.recipe is not None
    assert [column["decimal"] for column in client.recipe["columns"]] == [",", ","]
    assert not [*tmp_path.glob(f"cache/**/{row_hashes.FILE}")]  # windows are no rows
