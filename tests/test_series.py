"""Time series: lists, windows of recordings, their labels and splits against loops, scaling, and new rows."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from fedham_flwr.core.errors import UserError
from fedham_flwr.data import recipes
from fedham_flwr.data.batches import inputs_and_targets
from fedham_flwr.data.client_data import ClientData
from fedham_flwr.data.clients import open_node, open_partition
from fedham_flwr.data.data_settings import DataSettings, Fractions, Partitioning
from fedham_flwr.data.kinds.recordings import Recordings, cut
from fedham_flwr.data.kinds.series_lists import lists
from fedham_flwr.data.kinds.series_settings import SeriesSettings
from fedham_flwr.data.window_splits import split_recordings, split_windows

Open = Callable[..., ClientData]


@pytest.fixture
def opened(tmp_path: Path) -> Open:
    """Writes columns, and opens the data of one client: opened(columns, number, clients, partitioner, **settings)."""

    def make(
        columns: dict[str, Any] | datasets.Dataset, number: int = 0, clients: int = 1, by: str = "iid", **more: Any
    ) -> ClientData:
        rows = columns if isinstance(columns, datasets.Dataset) else datasets.Dataset.from_dict(columns)
        path = tmp_path / "rows.parquet"
        rows.to_parquet(path)
        given = {"cache_dir": str(tmp_path / "cache"), "partitioning": Partitioning(by), **more}
        return open_partition(DataSettings(str(path), **given), number, clients)

    return make


def raw(client: ClientData) -> np.ndarray:
    """The client's series before its scaling."""
    assert client.recipe is not None
    mean, std = (np.array(client.recipe["scaling"][name]) for name in ("mean", "std"))
    return client.features.numpy().astype(np.float64) * std + mean


# ---- lists -----------------------------------------------------------------------------------------------------------


VALUES = [[[float(10 * row + step), -1.0] for step in range(3)] for row in range(8)]


@pytest.mark.parametrize("form", ["lists", "array", "fixed"])
def test_lists_of_steps_are_series(opened: Open, form: str) -> None:
    kinds = {
        "lists": datasets.List(datasets.List(datasets.Value("float32"))),
        "array": datasets.Array2D((3, 2), "float32"),
        "fixed": datasets.List(datasets.List(datasets.Value("float64"), length=2), length=3),
    }
    rows = datasets.Dataset.from_dict({"x": VALUES, "label": [0, 1] * 4}).cast_column("x", kinds[form])
    client = opened(rows)
    assert (client.kind, client.shape, client.target) == ("series", (4, 3, 1, 0), "class")
    assert client.features.dtype == torch.float32
    assert raw(client) == pytest.approx(np.array(VALUES), abs=1e-5)
    assert client.recipe is not None
    assert client.recipe["channels"] == ["x[0]", "x[1]"] == list(client.agreed)


def test_a_list_is_a_series_of_one_channel_if_a_length_is_given(opened: Open) -> None:
    columns = {"x": [[1.0, 2.0, 3.0], [4.0], [5.0, 6.0, 7.0, 8.0], [None, 1.0, 0.0]] * 2, "label": [0, 1] * 4}
    client = opened(columns, feature_column="x", series=SeriesSettings(length=3))
    found = raw(client)[:4, :, 0]
    wanted = [[1, 2, 3], [4, np.nan, np.nan], [5, 6, 7], [np.nan, 1, 0]]
    np.testing.assert_allclose(found, wanted, atol=1e-6)
    assert client.shape == (2, 3, 1, 0)


def test_a_network_is_told_what_is_missing() -> None:
    steps = torch.tensor([[[1.0, 2.0], [float("nan"), 4.0]]])
    inputs, labels = inputs_and_targets(steps, torch.tensor([3]), "series")
    assert inputs.tolist() == [[[1, 0], [2, 4], [0, 1], [0, 0]]]
    assert labels.tolist() == [3]
    assert inputs.is_contiguous()


@given(
    st.lists(
        st.lists(st.lists(st.one_of(st.none(), st.integers(-9, 9)), min_size=2, max_size=2), min_size=1, max_size=4),
        min_size=1,
        max_size=5,
    ),
    st.integers(1, 5),
)
@hypothesis_settings(max_examples=20)
def test_lists_against_a_loop(rows: list[list[list[int | None]]], length: int) -> None:
    kind = datasets.Features({"x": datasets.List(datasets.List(datasets.Value("float32")))})
    found = lists(datasets.Dataset.from_dict({"x": rows}, features=kind), "x", length)
    assert found.shape == (len(rows), length, 2)
    for row, steps in enumerate(rows):
        for step in range(length):
            for channel in range(2):
                value = steps[step][channel] if step < len(steps) else None
                got = found[row, step, channel]
                assert np.isnan(got) if value is None else got == value


@pytest.mark.parametrize(
    ("x", "message"),
    [
        ([[[1.0]], [[1.0], [2.0]]] * 2, r"row 1 of 'x' has 2 steps, but row 0 has 1: set series\.length"),
        ([[[1.0, 2.0]], [[1.0]]] * 2, r"row 1 of 'x' has a step of 1 channels, but the first step has 2"),
        ([[[1.0]], None] * 2, r"feature-column 'x' has 2 empty rows"),
        ([[[1.0]], [[float("inf")]]] * 2, r"row 1 of 'x' holds an infinite value"),
        ([[], [[1.0]]] * 2, r"row 1 of 'x' has 1 steps, but row 0 has 0"),
    ],
)
def test_lists_that_are_no_series(opened: Open, x: list[Any], message: str) -> None:
    kind = datasets.Features(
        {"x": datasets.List(datasets.List(datasets.Value("float32"))), "label": datasets.Value("int64")}
    )
    with pytest.raises(UserError, match=message):
        opened(datasets.Dataset.from_dict({"x": x, "label": [0, 1] * 2}, features=kind))


def test_settings_of_recordings_are_idle_for_lists(opened: Open, tmp_path: Path) -> None:
    opened({"x": VALUES, "label": [0, 1] * 4}, series=SeriesSettings(3, time="label", split="recording"))
    meta = json.loads(next(tmp_path.glob("cache/data-*/meta.json")).read_text())
    assert meta["notes"] == ["without effect, since each row is a window already: series.time, series.split"]


def test_more_channels_than_steps_are_said(opened: Open, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="fedham_flwr"):
        opened({"x": [[[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]] * 4, "label": [0, 1] * 2})
    assert "series of 2 steps have 3 channels: if it is the other way round" in caplog.text


@pytest.mark.parametrize(
    ("label", "target", "dtype"), [("y", "value", torch.float32), ("a b", "multi-label", torch.uint8)]
)
def test_series_of_values_and_of_labels(opened: Open, label: str, target: str, dtype: torch.dtype) -> None:
    columns = {"x": VALUES, "y": [0.5] * 8, "a": [0, 1] * 4, "b": [1, 1] * 4}
    client = opened(columns, label_column=label, target=target)
    assert (client.target, client.labels.dtype, client.outputs) == (target, dtype, len(label.split()))


# ---- recordings ------------------------------------------------------------------------------------------------------


RECORDED = st.lists(
    st.tuples(st.integers(0, 1), st.integers(0, 2), st.integers(0, 30), st.integers(0, 2)), min_size=6, max_size=40
)


@given(RECORDED, st.integers(1, 4), st.integers(1, 4), st.sampled_from([0.0, 1.0, 3.0]))
def test_windows_against_a_loop(rows: list[tuple[int, int, int, int]], length: int, stride: int, gap: float) -> None:
    owners = np.array([row[0] for row in rows])
    recording, time = np.array([row[1] for row in rows]), np.array([float(row[2]) for row in rows])
    values = np.arange(len(rows), dtype=np.float32)[:, None]
    labels = np.array([row[3] for row in rows])
    wanted, wanted_labels, wanted_majority = [], [], []
    for owner in sorted(set(owners.tolist())):
        for one in sorted({row[1] for row in rows if row[0] == owner}):
            mine = [i for i, row in enumerate(rows) if (row[0], row[1]) == (owner, one)]
            mine.sort(key=lambda i: (rows[i][2], i))
            stretches = [[mine[0]]]
            for before, after in pairwise(mine):
                if gap and rows[after][2] - rows[before][2] > gap:
                    stretches.append([])
                stretches[-1].append(after)
            for stretch in stretches:
                for start in range(0, len(stretch) - length + 1, stride):
                    window = stretch[start : start + length]
                    wanted.append(window)
                    wanted_labels.append(rows[window[-1]][3])
                    counts = [sum(rows[i][3] == kind for i in window) for kind in range(3)]
                    wanted_majority.append(counts.index(max(counts)))
    found = Recordings(values, recording, ["a", "b", "c"], time)
    recipe = {"length": length, "stride": stride, "gap": gap}
    if not wanted:
        with pytest.raises(UserError, match=rf"series\.length={length}, but the longest stretch of rows"):
            cut(found, owners, recipe)
        return
    windows = cut(found, owners, recipe)
    assert windows.values[:, :, 0].tolist() == wanted
    assert windows.labels(labels, "last").tolist() == wanted_labels
    assert windows.labels(labels, "majority").tolist() == wanted_majority
    assert windows.first(owners).tolist() == [rows[window[0]][0] for window in wanted]
    flags = (labels[:, None] == np.arange(3)).astype(np.uint8)
    most = [[int(2 * sum(rows[i][3] == kind for i in window) > length) for kind in range(3)] for window in wanted]
    assert windows.labels(flags, "majority").tolist() == most


@given(
    st.lists(st.integers(1, 25), min_size=1, max_size=4), st.integers(1, 5), st.integers(1, 5), st.booleans(),
    st.integers(0, 5),
)  # fmt: skip
def test_no_row_is_in_two_splits(sizes: list[int], length: int, stride: int, whole: bool, seed: int) -> None:
    spans, begin = [], 0
    for number, size in enumerate(sizes):
        spans += [(number, begin + start, length) for start in range(0, size - length + 1, stride)]
        begin += size
    part, table = np.arange(len(spans)), np.array(spans).reshape(-1, 3)
    try:
        if whole:
            share = np.random.default_rng(seed).random(len(sizes))[table[:, 0].astype(int)]
            splits = split_recordings(part, table, share, Fractions(0.2, 0.3), "a")
        else:
            splits = split_windows(part, table, Fractions(0.2, 0.3), np.random.default_rng(seed), "a")
    except UserError:
        return
    rows = {
        name: {row for w in found for row in range(spans[w][1], spans[w][1] + length)} for name, found in splits.items()
    }
    for one, other in (("train", "validation"), ("train", "test"), ("validation", "test")):
        assert not rows[one] & rows[other]
        if whole:
            assert not {spans[w][0] for w in splits[one]} & {spans[w][0] for w in splits[other]}
    if not whole:  # training lies before validation, and that before testing
        for number in range(len(sizes)):
            ends = [
                [spans[w][1] for w in splits[name] if spans[w][0] == number] for name in ("train", "validation", "test")
            ]
            order = [start for each in ends for start in each]
            assert order == sorted(order)
    if stride >= length or whole:
        assert sum(map(len, splits.values())) == len(spans)


def test_windows_that_overlap_the_next_split_are_left_out() -> None:
    spans = np.array([(0, start, 4) for start in range(0, 40, 2)])  # each overlaps the next one
    splits = split_windows(np.arange(20), spans, Fractions(0.0, 0.25), np.random.default_rng(0), "a")
    assert splits["test"].tolist() == [15, 16, 17, 18, 19]
    assert splits["train"].tolist() == list(range(14))
    assert splits["validation"].tolist() == []


def test_a_whole_recording_goes_where_its_share_says() -> None:
    spans = np.array([(0, 0, 2), (0, 2, 2), (1, 4, 2), (2, 6, 2)])
    shares = np.array([0.1, 0.1, 0.25, 0.9])
    splits = split_recordings(np.arange(4), spans, shares, Fractions(0.1, 0.2), "a")
    assert {name: found.tolist() for name, found in splits.items()} == {"train": [3], "validation": [2], "test": [0, 1]}
    splits = split_recordings(np.arange(3), spans, shares, Fractions(0.1, 0.2), "a")  # the last one is not there yet
    assert {name: found.tolist() for name, found in splits.items()} == {"train": [2], "validation": [], "test": [0, 1]}
    with pytest.raises(UserError, match=r"needs at least 2 recordings of each client.* client 'a' has 1"):
        split_recordings(np.arange(2), spans, shares, Fractions(), "a")


def test_a_new_recording_moves_no_other(opened: Open) -> None:
    rows: dict[str, Any] = {
        "rec": [f"r{one}" for one in range(21) for _ in range(8)],
        "x": [float(one) for one in range(21) for _ in range(8)],
        "label": [0, 1] * 84,
    }
    whole = {"feature_column": "x", "series": SeriesSettings(4, recording="rec", split="recording")}
    found = []
    for rest in (slice(0, 160), slice(0, 168)):  # without the last recording, and with it
        client = opened({name: values[rest] for name, values in rows.items()}, **whole)
        found.append({name: {*np.round(raw(client)[of][:, 0, 0]).tolist()} for name, of in client.splits.items()})
    before, after = found
    assert min(map(len, before.values())) >= 1
    assert {name: numbers - {20.0} for name, numbers in after.items()} == before


def recorded(sites: int = 2, steps: int = 24) -> dict[str, Any]:
    """Rows of two channels, one recording after the other, not in the order of time."""
    rows = [
        (f"site{site}", f"r{one}", t, float(t + 100 * one), None if t % 5 == 0 else float(site), t // 12)
        for site in range(sites)
        for one in range(2)
        for t in reversed(range(steps))
    ]
    names = ("site", "rec", "t", "x", "y", "label")
    return dict(zip(names, map(list, zip(*rows, strict=True)), strict=True))


CUT = SeriesSettings(length=4, stride=2, time="t", recording="rec", gap=1.5)
OWNED: dict[str, Any] = {"by": "natural", "client_column": "site", "feature_column": "x y", "series": CUT}


def test_windows_of_clients_with_their_own_scaling(opened: Open) -> None:
    one, two = (opened(recorded(), number, 2, **OWNED) for number in range(2))
    assert (one.name, one.kind, one.shape, one.classes) == ("site0", "series", (4, 4, 1, 0), ("0", "1"))
    # Of the 11 windows of a recording 3 are for testing and 1 for validation; before each, one that overlaps is left.
    assert one.counts() == {"train": 10, "validation": 2, "test": 6}
    x = raw(one)
    train = one.splits["train"].numpy()
    assert np.nanmean(one.features.numpy()[train], axis=(0, 1)) == pytest.approx([0, 0], abs=1e-6)
    assert np.nanstd(one.features.numpy()[train], axis=(0, 1))[0] == pytest.approx(1, abs=1e-5)
    assert np.diff(x[train][:, :, 0], axis=1) == pytest.approx(1.0, abs=1e-4)  # in the order of time
    assert np.array_equal(np.isnan(x[train][:, :, 1]), np.round(x[train][:, :, 0]) % 5 == 0)
    assert one.recipe is not None
    assert two.recipe is not None
    assert one.recipe["scaling"]["mean"][1] == 0
    assert two.recipe["scaling"]["mean"][1] == 1
    for which in ("train", "validation", "test"):
        last = np.round(x[one.splits[which].numpy()][:, -1, 0]) % 100
        assert one.labels[one.splits[which]].tolist() == (last // 12).tolist()


def test_times_may_be_dates(opened: Open) -> None:
    columns = recorded()
    columns["t"] = [f"2024-05-31 08:{t:02d}:00" for t in columns["t"]]
    by_minutes = opened(columns, **OWNED | {"series": SeriesSettings(4, 2, "t", "rec", 60.0)})
    assert by_minutes.counts() == opened(recorded(), **OWNED).counts()
    with pytest.raises(UserError, match=r"series\.length=4, but the longest stretch of rows without a gap has 1"):
        opened(columns, **OWNED | {"series": SeriesSettings(4, 2, "t", "rec", 59.0)})


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"series": SeriesSettings(4, gap=1.0)}, r"series\.gap=1 needs series\.time"),
        ({"series": SeriesSettings(4, time="when")}, r"series\.time is 'when', but the columns are"),
        ({"series": SeriesSettings(4, time="x")}, r"feature-column names 'x', which is series\.time; leave it out"),
        (
            {"series": SeriesSettings(4, time="rec")},
            r"series\.time 'rec' holds 'r0' in row 0, but must hold numbers",
        ),
        ({"series": SeriesSettings(99)}, r"series\.length=99, but the longest stretch .* has 48: set a smaller one"),
        ({"series": SeriesSettings(4, 2, "t", "rec", label="majority"), "target": "value"}, r'is value: set "last"'),
        ({"series": SeriesSettings(4), "feature_column": "x z"}, r"feature-column names 'z', but the columns are site"),
        ({"series": SeriesSettings(4), "feature_column": "x label"}, r"names 'label', which is the label-column"),
    ],
)
def test_recordings_that_cannot_be_cut(opened: Open, changed: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        opened(recorded(), **OWNED | {"label_column": "label"} | changed)


def test_a_missing_time_is_named_with_its_row(opened: Open) -> None:
    columns = recorded()
    columns["t"][7] = None
    with pytest.raises(UserError, match=r"series\.time 't' is empty in row 7, but every row needs a time"):
        opened(columns, **OWNED)


def test_a_node_cuts_its_own_recordings(tmp_path: Path) -> None:
    columns = {name: values[:48] for name, values in recorded().items()}
    datasets.Dataset.from_dict(columns).to_parquet(tmp_path / "ward.parquet")
    given = {"cache_dir": str(tmp_path / "cache"), "feature_column": "x y", "series": CUT}
    client = open_node(DataSettings("unused", **given), str(tmp_path / "ward.parquet"))
    assert (client.name, sum(client.counts().values())) == ("ward.parquet", 18)


# ---- new rows --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["lists", "recordings"])
def test_new_rows_become_the_same_bits_as_in_training(opened: Open, form: str) -> None:
    columns: dict[str, Any] = {"x": VALUES, "label": [0, 1] * 4}
    if form == "recordings":
        columns = {name: values[:48] for name, values in recorded().items()}
    client = opened(columns, **(OWNED if form == "recordings" else {}))
    recipe = json.loads(recipes.label(client)["recipe"])
    found = recipes.encode(datasets.Dataset.from_dict(columns), recipe)
    kept = torch.cat([*client.splits.values()])
    assert found.dtype == np.float32
    assert torch.equal(torch.from_numpy(found)[kept].nan_to_num(9), client.features[kept].nan_to_num(9))


def test_new_rows_that_do_not_fit_are_named(opened: Open) -> None:
    client = opened({"x": VALUES, "label": [0, 1] * 4})
    recipe = json.loads(recipes.label(client)["recipe"])
    for columns, message in [
        ({"y": VALUES}, r"feature-column is 'x', but the columns are y"),
        ({"x": [1.0]}, r"column 'x' is of kind float64, but the model wants lists of numbers"),
        ({"x": [[[1.0], [2.0], [3.0]]]}, r"'x' has 1 channels, but the model wants 2"),
    ]:
        with pytest.raises(UserError, match=message):
            recipes.encode(datasets.Dataset.from_dict(columns), recipe)
