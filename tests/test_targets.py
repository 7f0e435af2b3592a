"""Values and labels as targets: of which columns they are made, federations that learn them, and what is refused."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Outcome
from torch import Tensor
from torch.nn.functional import binary_cross_entropy, cross_entropy

from fedham_flwr.algorithms import fedtp
from fedham_flwr.algorithms.fedtp import FedTPSettings
from fedham_flwr.core.errors import UserError
from fedham_flwr.core.records import Row
from fedham_flwr.data.batches import inputs_and_targets, sample_shape, target_of
from fedham_flwr.data.client_data import ClientData
from fedham_flwr.data.clients import open_node, open_partition
from fedham_flwr.data.data_settings import DataSettings, Partitioning
from fedham_flwr.data.partitioners import PARTITIONERS
from fedham_flwr.data.partitions import check_classless
from fedham_flwr.federation import wire
from fedham_flwr.federation.agreement import agree
from fedham_flwr.federation.messages import Profile
from fedham_flwr.reporting.progress import line_values
from fedham_flwr.reporting.summary import final, selected
from fedham_flwr.settings import Value
from fedham_flwr.training.metrics import METRICS
from fedham_flwr.training.targets import task_loss

Federate = Callable[..., Outcome]
DIABETES = "age sex bmi bp s1 s2 s3 s4 s5 s6"


@pytest.fixture(scope="module")
def diabetes(tmp_path_factory: pytest.TempPathFactory) -> str:
    """scikit-learn's diabetes; the progression in units of 100, and twice as a second value, and ill or not."""
    from sklearn.datasets import load_diabetes

    frame = load_diabetes(as_frame=True).frame
    frame["target"] /= 100
    frame["twice"], frame["number"] = 2 * frame["target"], frame["target"].astype(int)
    frame["ill"], frame["heavy"], frame["nobody"] = frame["target"] > 1.4, (frame["bmi"] > 0).astype(int), 0
    frame["site"] = np.arange(len(frame)) % 3
    frame["tags"] = [["heavy"] * bool(h) + ["ill"] * bool(i) for h, i in zip(frame["heavy"], frame["ill"], strict=True)]
    path = tmp_path_factory.mktemp("diabetes") / "rows.parquet"
    frame.to_parquet(path)
    return str(path)


@pytest.fixture
def opened(diabetes: str, cache_dir: Path) -> Callable[..., ClientData]:
    def open_it(target: str, label: str, partitioner: str = "iid", **given: Any) -> ClientData:
        chosen = DataSettings(
            diabetes, DIABETES, label, partitioning=Partitioning(partitioner), cache_dir=str(cache_dir), target=target,
            **given,
        )  # fmt: skip
        return open_partition(chosen, 0, 3)

    return open_it


# ---- what the targets are -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("label", "shape", "outputs"), [("target", (442,), 1), ("target twice", (442, 2), 2), ("number", (442,), 1)]
)
def test_values_are_raw_numbers(
    opened: Callable[..., ClientData], diabetes: str, label: str, shape: tuple[int, ...], outputs: int
) -> None:
    import pandas as pd

    data = opened("value", label)
    assert (data.kind, data.target, data.outputs, data.shape) == ("table", "value", outputs, (2, 10))
    assert (data.labels.dtype, tuple(data.labels.shape)) == (torch.float32, shape)
    raw = pd.read_parquet(diabetes)[label.split()].to_numpy(np.float32)
    assert np.array_equal(data.labels.numpy().reshape(442, -1), raw)
    assert data.label_counts("train") == []
    dealt = torch.cat(list(data.splits.values())).tolist()
    assert len(set(dealt)) == len(dealt) == 148  # of 442 in three parts
    assert all(len(indices) for indices in data.splits.values())


def test_labels_are_columns_or_one_of_lists(opened: Callable[..., ClientData], diabetes: str) -> None:
    columns, lists = opened("multi-label", "heavy ill"), opened("multi-label", "tags")
    assert (columns.target, columns.outputs, columns.classes) == ("multi-label", 2, ("heavy", "ill"))
    assert torch.equal(columns.labels, lists.labels)
    assert columns.labels.dtype == torch.uint8
    assert lists.classes == ("heavy", "ill")
    import pandas as pd

    assert np.array_equal(columns.labels.numpy(), pd.read_parquet(diabetes)[["heavy", "ill"]].to_numpy(np.uint8))


@pytest.mark.parametrize("partitioner", [each for each in PARTITIONERS if each != "files"])
def test_what_deals_by_class_is_refused(opened: Callable[..., ClientData], partitioner: str) -> None:
    given = {"client_column": "site"} if partitioner == "natural" else {}
    if partitioner in ("iid", "natural"):
        assert len(opened("value", "target", partitioner, **given).splits["train"])
        return
    message = f"partitioner is '{partitioner}', which deals by class labels, but target=\"value\" has none; use "
    with pytest.raises(UserError, match=message):
        check_classless(Partitioning(partitioner), 'target="value"')
    if partitioner != "class-table":  # which wants a file
        with pytest.raises(UserError, match=message):
            opened("value", "target", partitioner)


@pytest.mark.parametrize(
    ("target", "label", "message"),
    [
        ("value", "", "target is 'value' and label-column is empty; name the target's columns, with blanks between."),
        ("value", "tags", "label-column 'tags' is of kind .*, but target=value needs numbers"),
        ("value", "target target", "label-column names 'target' twice; name each column once"),
        ("value", "bmi", "feature-column names 'bmi', which is a label-column; leave it out"),
        ("value", "weight", "label-column .*'weight'"),
        (
            "multi-label",
            "heavy number",
            "label-column 'number' has . in row ., but target=multi-label needs columns of",
        ),
        ("next-token", "target", "target is 'next-token', but the data set is a table; wanted class or value or multi"),
    ],
)
def test_columns_that_are_no_target(opened: Callable[..., ClientData], target: str, label: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        opened(target, label)


@pytest.mark.parametrize(
    ("gap", "message"),
    [
        (None, "label-column 'y' has 1 empty rows, but every row needs a value"),
        (math.inf, "label-column 'y' is no finite number in row 2, but every row needs a value"),
    ],
)
def test_a_value_that_is_missing(tmp_path: Path, cache_dir: Path, gap: float | None, message: str) -> None:
    import datasets

    path = tmp_path / "rows.parquet"
    datasets.Dataset.from_dict({"a": [1.0, 2, 3, 4, 5, 6], "y": [1.0, 2.0, gap, 1.0, 2.0, 3.0]}).to_parquet(path)
    chosen = DataSettings(
        str(path), "a", "y", partitioning=Partitioning("iid"), cache_dir=str(cache_dir), target="value"
    )
    with pytest.raises(UserError, match=message):
        open_partition(chosen, 0, 1)


def test_a_node_of_a_real_federation(diabetes: str, cache_dir: Path) -> None:
    chosen = DataSettings(feature_column=DIABETES, label_column="target", cache_dir=str(cache_dir), target="value")
    data = open_node(chosen, diabetes)
    assert (data.target, sum(data.counts().values())) == ("value", 442)


def test_arrays_are_used_as_they_are() -> None:
    features, labels = torch.randn(6, 5), torch.arange(6) % 2
    splits = dict.fromkeys(("train", "validation", "test"), torch.arange(6))
    array = ClientData(features, labels, splits, ("0", "1"), "0", kind="array")
    assert (array.kind, array.shape, array.target, array.outputs) == ("array", (5,), "class", 2)
    assert ClientData(features, labels, splits, ("0", "1"), "0").kind == "table"  # the same tensors, not declared
    assert sample_shape(torch.zeros(6, 3, 4, 5), "array") == (3, 4, 5)
    x, y = inputs_and_targets(features, labels, "array")
    assert x is features
    assert y is labels


def test_targets_are_told_by_their_tensors() -> None:
    known = {
        "class": [torch.zeros(3, dtype=torch.int64)],
        "next-token": [torch.zeros(3, 4, dtype=torch.int64)],
        "multi-label": [torch.zeros(3, 4, dtype=torch.uint8), torch.zeros(3, 1, dtype=torch.bool)],
        "value": [torch.zeros(3), torch.zeros(3, 2)],
    }
    assert {target: [target_of(y) for y in ys] for target, ys in known.items()} == {
        target: [target] * len(ys) for target, ys in known.items()
    }
    for strange in (torch.zeros(3, dtype=torch.float64), torch.zeros(3, dtype=torch.uint8), torch.zeros(1, 1, 1)):
        with pytest.raises(ValueError, match="are of no known kind"):
            target_of(strange)


def test_the_loss_of_each_target() -> None:
    x, y = torch.randn(5, 3), torch.arange(5) % 3
    assert torch.equal(task_loss(x, y), cross_entropy(x, y))
    flags: Tensor = torch.tensor([[1, 0, 1]] * 5, dtype=torch.uint8)
    assert task_loss(x, flags).item() == pytest.approx(binary_cross_entropy(x.sigmoid(), flags.float()).item())
    assert task_loss(torch.tensor([[1.0], [3.0]]), torch.tensor([2.0, 1.0])).item() == 2.5  # (1 + 4) / 2
    assert task_loss(torch.tensor([[1.0], [3.0]]), torch.tensor([2.0, 1.0]), "sum").item() == 5


# ---- what the clients tell the server -------------------------------------------------------------------------------


def profile(**given: Any) -> Profile:
    counts = {"train": 8, "validation": 1, "test": 1}
    plain = {"partitions": 2, "shape": (2, 10), "classes": 1, "counts": counts, "labels": (), "target": "value"}
    return Profile(**{"client": "a", **plain, **given})


def test_a_profile_without_classes_travels() -> None:
    assert wire.read_profile(wire.write_profile(profile())) == profile()
    with pytest.raises(ValueError, match="not the description of a data set"):
        wire.read_profile(wire.write_profile(profile(labels=(3,))))
    with pytest.raises(ValueError, match="not the description of a data set"):
        wire.read_profile(wire.write_profile(profile(target="class")))


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"target": "class", "labels": (8,)}, "client a has value targets and client b has class targets: all clients "
                                              "must learn the same"),
        ({"classes": 2}, "client a has 1 value targets a sample and client b has 2: all clients must learn the same"),
    ],
)  # fmt: skip
def test_clients_that_learn_something_else(other: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=f"^{message}$"):
        agree([profile(), profile(client="b", **other)])


# ---- whole runs -----------------------------------------------------------------------------------------------------


@pytest.fixture
def small(diabetes: str) -> dict[str, Value]:
    return {
        "dataset": diabetes, "feature-column": DIABETES, "partitioner": "natural", "client-column": "site",
        "mlp.width": 16, "num-server-rounds": 8, "batch-size": 16, "evaluate-every": 2,
    }  # fmt: skip


def test_a_regression_of_tables(
    federate: Federate, small: dict[str, Value], capsys: pytest.CaptureFixture[str]
) -> None:
    run = federate(
        clients=3,
        pictures=True,
        target="value",
        label_column="target",
        metrics="rmse mae r2",
        **small,
        learning_rate=0.05,
    )
    assert run.summary["failures"] == 0
    assert run.summary["selection-metric"] == "rmse"
    assert {row.metric for row in run.rows} == {"rmse", "mae", "r2", "loss"}
    for row in run.rows:
        if row.metric == "loss":
            (other,) = [r for r in run.rows if r[:5] == row[:5] and r.metric == "rmse"]
            assert row.value == pytest.approx(other.value**2, rel=1e-5)
    means = validation_means(run, "rmse")
    (entry,) = [
        e for e in run.summary["selected"] if (e["phase"], e["split"], e["metric"]) == ("after", "validation", "rmse")
    ]
    assert (entry["round"], entry["chosen-on"]) == (min(means, key=lambda number: means[number]), "validation")
    assert means[max(means)] < 0.77  # the standard deviation of the target: better than the mean
    said = capsys.readouterr().out
    shown = said.split("client  train  validation  test\n")[1]  # behind the settings, and without a column of classes
    assert "test rmse" in shown
    assert "accuracy" not in shown
    assert (run.path / "learning-curves.png").is_file()
    assert (run.path / "clients.png").is_file()
    assert all("train-labels" not in client for client in json.loads((run.path / "clients.json").read_text()))


@pytest.mark.parametrize("label", ["heavy ill nobody", "tags"])
def test_labels_that_a_sample_may_have_several_of(federate: Federate, small: dict[str, Value], label: str) -> None:
    run = federate(clients=3, target="multi-label", label_column=label, metrics="f1 auroc", **small, learning_rate=0.2)
    assert run.summary["failures"] == 0
    assert {row.metric for row in run.rows} == {"f1", "auroc", "loss"}
    last = [row for row in run.rows if row.round == 8 and row[2:6] == ("test", "personal", "after", "auroc")]
    assert len(last) == 3
    assert min(row.value for row in last) > 0.6


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"metrics": "accuracy"}, "accuracy is of class and next-token targets, and those of the data are value"),
        ({"selection-metric": "f1"}, 'selection-metric="f1" is not measured: wanted "auto" or one of rmse, loss'),
    ],
)
def test_what_does_not_fit_is_refused_before_the_first_round(
    federate: Federate, small: dict[str, Value], given: dict[str, Value], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        federate(clients=3, target="value", label_column="target", **small, **given)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"head": "fedrod"}, r'fedtp\.head="fedrod" is for classes, and the target is value'),
        ({"head": "fedrod", "knn": True}, r'fedtp\.head="fedrod" and fedtp\.knn=true are for classes'),
    ],
)
def test_what_fedtp_does_with_classes_only(given: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        fedtp.check_target(FedTPSettings(**given), "value")
    fedtp.check_target(FedTPSettings(**given), "next-token")
    fedtp.check_target(FedTPSettings(), "value")


def validation_means(run: Outcome, metric: str) -> dict[int, float]:
    """The mean over samples of each round, written out."""
    sums: dict[int, list[tuple[float, int]]] = {}
    for row in run.rows:
        if row[2:6] == ("validation", "personal", "after", metric):
            sums.setdefault(row.round, []).append((row.value, row.n))
    return {number: sum(v * n for v, n in found) / sum(n for _, n in found) for number, found in sums.items()}


# ---- statistics by direction ----------------------------------------------------------------------------------------


def scored(client: str, value: float, metric: str, number: int = 1, split: str = "validation") -> Row:
    return Row(number, client, split, "personal", "after", metric, value, 10)


@pytest.mark.parametrize(("metric", "best"), [("rmse", 2), ("r2", 1), ("calibration-error", 2), ("f1", 1)])
def test_selection_goes_by_the_direction(metric: str, best: int) -> None:
    values = {1: 0.9, 2: 0.1, 3: 0.5}
    rows = [scored(client, value, metric, number) for number, value in values.items() for client in "ab"]
    assert {entry["round"] for entry in selected(rows, {"a", "b"}, METRICS[metric])} == {best}


@pytest.mark.parametrize(("metric", "worst"), [("rmse", 9), ("mae", 9), ("auroc", 0), ("r2", 0), ("perplexity", 9)])
def test_the_worst_tenth_goes_by_the_direction(metric: str, worst: int) -> None:
    (entry,) = final([scored(str(k), float(k), metric) for k in range(10)])
    assert entry["worst-decile"] == worst


def test_a_client_for_which_a_metric_is_never_defined_does_not_stop_the_choice() -> None:
    rows = [scored("a", value, "auroc", number) for number, value in ((1, 0.9), (2, 0.8))]
    rows += [scored(client, 0.5, "loss", number) for number in (1, 2) for client in "ab"]
    chosen = selected(rows, {"a", "b"}, METRICS["auroc"])
    assert {(entry["round"], entry["chosen-on"]) for entry in chosen} == {(1, "validation")}


def test_a_line_of_the_progress_shows_the_metric_asked_for() -> None:
    rows = [scored("a", 3.0, "rmse", split="test"), scored("b", 5.0, "rmse", split="test"), scored("a", 1.0, "r2")]
    assert line_values(rows, 2, 2, 0.5, METRICS["rmse"])["personal after"] == 4.0
