"""Metrics: each against a naive loop or scikit-learn, absent classes, directions and ranges, and what is refused."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from sklearn import metrics as sk
from torch import Tensor

from fedham_flwr.core.errors import UserError
from fedham_flwr.core.records import Row
from fedham_flwr.data.batches import Target
from fedham_flwr.federation.bounds import check_report
from fedham_flwr.federation.messages import Upload
from fedham_flwr.settings import parse
from fedham_flwr.training import metric_choice
from fedham_flwr.training.measurement import Measurement
from fedham_flwr.training.metric_choice import chosen, faults, selection
from fedham_flwr.training.metrics import METRICS, Metric, known
from fedham_flwr.training.targets import task_loss

K = 4
CLASS_METRICS = "accuracy balanced-accuracy f1 auroc average-precision calibration-error"
SEEDS = range(4)


def measured(names: str, outputs: Tensor, targets: Tensor, target: Target, batches: int = 3) -> dict[str, float]:
    """The scores of samples that come in several batches."""
    measurement = Measurement(chosen(names, target, outputs.shape[-1]), torch.device("cpu"))
    for x, y in zip(outputs.tensor_split(batches), targets.tensor_split(batches), strict=True):
        measurement.add(x, y)
    return dict(measurement.scores().values)


def classes(seed: int, of: int = K, n: int = 60) -> tuple[Tensor, Tensor]:
    """Logits [n, K] and targets among the first `of` classes, which the logits partly know."""
    generator = torch.Generator().manual_seed(seed)
    targets = torch.arange(n) % of
    targets = targets[torch.randperm(n, generator=generator)]
    logits = torch.randn(n, K, generator=generator) + 1.5 * torch.nn.functional.one_hot(targets, K)
    return logits, targets


def labels(seed: int, n: int = 50) -> tuple[Tensor, Tensor]:
    """Logits and truths [n, K]; nobody has the last label, everybody has the one before."""
    generator = torch.Generator().manual_seed(seed)
    truths = (torch.rand(n, K, generator=generator) < 0.4).to(torch.uint8)
    truths[0], truths[1] = 1, 0  # both sides of each
    truths[:, -1], truths[:, -2] = 0, 1
    return torch.randn(n, K, generator=generator) + truths, truths


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("of", [2, 3, K])
def test_of_classes_against_scikit_learn_over_those_that_are_there(seed: int, of: int) -> None:
    logits, targets = classes(seed, of)
    found = measured(CLASS_METRICS, logits, targets, "class")
    y, p = targets.numpy(), logits.double().softmax(1).numpy()
    said, there = p.argmax(1), list(range(of))
    assert found["accuracy"] == (said == y).mean()
    assert found["balanced-accuracy"] == pytest.approx(
        sk.recall_score(y, said, labels=there, average="macro", zero_division=0)
    )
    assert found["f1"] == pytest.approx(sk.f1_score(y, said, labels=there, average="macro", zero_division=0))
    areas = [sk.roc_auc_score(y == c, p[:, c]) for c in there]
    precisions = [sk.average_precision_score(y == c, p[:, c]) for c in there]
    assert found["auroc"] == pytest.approx(sum(areas) / of, abs=1e-6)
    assert found["average-precision"] == pytest.approx(sum(precisions) / of, abs=1e-6)
    gap = 0.0
    for number in range(15):  # bins of confidence
        inside = (p.max(1) > number / 15) & (p.max(1) <= (number + 1) / 15)
        gap += abs((said == y)[inside].sum() - p.max(1)[inside].sum())
    assert found["calibration-error"] == pytest.approx(gap / len(y), abs=1e-6)


@pytest.mark.parametrize("seed", SEEDS)
def test_of_labels_against_scikit_learn_over_those_that_are_there(seed: int) -> None:
    logits, truths = labels(seed)
    found = measured("f1 auroc average-precision", logits, truths, "multi-label")
    y, p = truths.numpy(), logits.double().sigmoid().numpy()
    each = [sk.f1_score(y[:, c], p[:, c] > 0.5) for c in range(K - 1)]
    assert found["f1"] == pytest.approx(sum(each) / (K - 1))
    assert found["auroc"] == pytest.approx(sk.roc_auc_score(y[:, : K - 2], p[:, : K - 2]), abs=1e-6)
    precision = sk.average_precision_score(y[:, : K - 2], p[:, : K - 2])
    assert found["average-precision"] == pytest.approx(precision, abs=1e-6)
    assert found["loss"] == pytest.approx(
        -sum(math.log(p[i, c] if y[i, c] else 1 - p[i, c]) for i in range(len(y)) for c in range(K)) / y.size, rel=1e-5
    )
    assert measured("f1", logits, truths.bool(), "multi-label") == {k: found[k] for k in ("f1", "loss")}


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("k", [0, 1, 3])
def test_of_values_against_scikit_learn(seed: int, k: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    shape = (40, k) if k else (40,)
    targets = 100 + 30 * torch.randn(shape, generator=generator)
    outputs = (targets + 10 * torch.randn(shape, generator=generator)).reshape(40, max(1, k))
    found = measured("rmse mae r2", outputs, targets, "value")
    y, given = targets.reshape(40, -1).double().numpy(), outputs.double().numpy()
    assert found["rmse"] == pytest.approx(math.sqrt(sk.mean_squared_error(y, given)))
    assert found["mae"] == pytest.approx(sk.mean_absolute_error(y, given))
    assert found["r2"] == pytest.approx(sk.r2_score(y, given))
    assert found["loss"] == pytest.approx(found["rmse"] ** 2, rel=1e-5)


def test_values_are_never_broadcast() -> None:
    with pytest.raises(ValueError, match=r"outputs of shape \(4, 2\) for targets of shape \(4, 1\)"):
        task_loss(torch.zeros(4, 2), torch.zeros(4))


def test_where_nothing_is_defined_there_is_no_score() -> None:
    logits, _ = classes(0)
    one = measured("auroc average-precision f1", logits, torch.zeros(60, dtype=torch.int64), "class")
    assert sorted(one) == ["f1", "loss"]  # one class: nothing to tell it from
    nobody = measured("f1 auroc average-precision", logits, torch.zeros(60, K, dtype=torch.uint8), "multi-label")
    assert sorted(nobody) == ["loss"]
    constant = measured("r2 rmse", torch.randn(5, 2), torch.ones(5, 2), "value")
    assert sorted(constant) == ["loss", "rmse"]
    assert "r2" not in measured("r2", torch.randn(1, 1), torch.ones(1), "value", batches=1)


def test_a_metric_without_an_answer_for_one_client_only() -> None:
    """The macro mean of a client that misses a class is not lowered by it: all right is 1."""
    targets = torch.tensor([0, 0, 2, 2])
    logits = 9.0 * torch.nn.functional.one_hot(targets, K)
    found = measured("balanced-accuracy f1 auroc average-precision", logits, targets, "class")
    assert {name: value for name, value in found.items() if name != "loss"} == dict.fromkeys(
        ("balanced-accuracy", "f1", "auroc", "average-precision"), 1.0
    )


def test_perplexity_and_scores_of_texts() -> None:
    logits, targets = classes(1)
    flat = measured("accuracy f1", logits, targets, "class")
    text = measured("accuracy perplexity f1", logits.reshape(12, 5, K), targets.reshape(12, 5), "next-token")
    assert text["perplexity"] == math.exp(text["loss"])
    assert text["loss"] == pytest.approx(flat["loss"])
    assert (text["accuracy"], text["f1"]) == (flat["accuracy"], flat["f1"])


def test_what_auto_is_for() -> None:
    found = {target: [metric.name for metric in chosen("auto", target, 3)] for target in metric_choice.AUTO}
    assert found == {
        "class": ["accuracy"],
        "next-token": ["accuracy", "perplexity"],
        "multi-label": ["f1"],
        "value": ["rmse"],
    }


# ---- directions and ranges ------------------------------------------------------------------------------------------


def test_every_direction_and_range() -> None:
    lower = {"calibration-error", "perplexity", "mae", "rmse", "loss"}
    assert {name for name, metric in METRICS.items() if not metric.higher} == lower
    fractions = {*CLASS_METRICS.split()}
    assert {name for name, metric in METRICS.items() if metric.bounded} == fractions
    assert (METRICS["r2"].least, METRICS["r2"].most) == (-math.inf, 1.0)
    assert known("somebody's") == Metric("somebody's")


def reported(metric: str, value: float) -> Upload:
    return Upload("a", {}, 5, (Row(1, "a", "test", "personal", "after", metric, value, 3),))


@pytest.mark.parametrize(
    ("metric", "value", "message"),
    [
        ("f1", 1.5, "the score f1 on test is 1.5, wanted 0 to 1"),
        ("auroc", -0.5, "the score auroc on test is -0.5, wanted 0 to 1"),
        ("calibration-error", 2.0, "the score calibration-error on test is 2.0, wanted 0 to 1"),
        ("rmse", -1.0, "the score rmse on test is -1.0, wanted at least 0"),
        ("r2", 1.5, "the score r2 on test is 1.5, wanted at most 1"),
        ("mine", math.inf, "the score mine on test is inf"),
    ],
)
def test_a_score_that_cannot_be_is_a_failed_reply(metric: str, value: float, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}$"):
        check_report(reported(metric, value))


@pytest.mark.parametrize(("metric", "value"), [("rmse", 1e9), ("r2", -50.0), ("mine", -3.0), ("mae", 0.0)])
def test_a_score_of_any_size_may_be(metric: str, value: float) -> None:
    check_report(reported(metric, value))


def test_the_server_knows_directions_and_a_client_its_scores_without_torchmetrics() -> None:
    code = (
        "import sys, fedham_flwr.server_app, fedham_flwr.client_app, torch\n"
        "from fedham_flwr.training.measurement import Measurement\n"
        "from fedham_flwr.training.metric_choice import chosen\n"
        "from fedham_flwr.training.metrics import METRICS\n"
        "assert not METRICS['rmse'].higher\n"
        "for target, y in (('class', torch.tensor([0, 1])), ('value', torch.ones(2, 2))):\n"
        "    m = Measurement(chosen('auto', target, 2), torch.device('cpu')); m.add(torch.eye(2), y); m.scores()\n"
        "assert 'torchmetrics' not in sys.modules and 'sklearn' not in sys.modules"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=120).returncode == 0


# ---- a user's own ---------------------------------------------------------------------------------------------------

OWN = """
import torch, torchmetrics
from torchmetrics.classification import MulticlassCohenKappa as Kappa
from torchmetrics.regression import PearsonCorrCoef as Pearson
def worst(outputs, targets): return (outputs - targets[:, None]).abs().max()
worst.higher_is_better = False
def plain(outputs, targets): return 0.25
def nothing(outputs, targets): return float("nan")
def fails(outputs, targets): raise RuntimeError("no such thing")
def many(outputs, targets): return outputs
class Other: pass
thing = 3
def accuracy(outputs, targets): return 0.0
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "own_scores.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "own_scores", raising=False)
    return "own_scores"


def test_a_function_and_a_class_of_the_users(own: str) -> None:
    outputs, targets = torch.tensor([[1.0], [2.0], [3.0]]), torch.tensor([1.0, 5.0, 3.0])
    names = f"{own}:worst {own}:plain {own}:nothing rmse"
    found = measured(names, outputs, targets, "value")
    assert (found["worst"], found["plain"], "nothing" in found) == (3.0, 0.25, False)
    assert [metric.higher for metric in chosen(names, "value", 1)] == [False, True, True, False]
    logits, truths = classes(0)
    kappa = measured(f"{own}:Kappa", logits, truths, "class")["kappa"]
    assert kappa == pytest.approx(sk.cohen_kappa_score(truths, logits.argmax(1)), abs=1e-6)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("fails", r'metrics="own_scores:fails" cannot be called with outputs \[4, 1\] and targets \[4\]: '
                  "RuntimeError: no such thing"),
        ("many", r'metrics="own_scores:many" gives \(4, 1\), and wanted is one number'),
        ("Other", 'metrics="own_scores:Other" is a class, and wanted is a torchmetrics.Metric or a function of '
                  r"\(outputs, targets\)"),
        ("thing", 'metrics="own_scores:thing" is int, and wanted is a torchmetrics.Metric class or a function of '
                  r"\(outputs, targets\)"),
    ],
)  # fmt: skip
def test_objects_that_are_no_metric(own: str, name: str, message: str) -> None:
    with pytest.raises(UserError, match=f"^{message}$"):
        metric_choice.check(chosen(f"{own}:{name}", "value", 1), "value", 1)


# ---- which are measured ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "target", "message"),
    [
        ("rmse", "class", 'metrics="rmse": rmse is of value targets, and those of the data are class; wanted some of '),
        ("accuracy", "value", 'metrics="accuracy": accuracy is of class and next-token targets, and those of the data '
                              "are value; wanted some of mae, rmse, r2, or an import path"),
        ("calibration-error", "multi-label", "and those of the data are multi-label; wanted some of f1, auroc"),
        ("perplexity", "class", 'metrics="perplexity": perplexity is of next-token targets'),
    ],
)  # fmt: skip
def test_a_metric_of_another_target_is_refused(name: str, target: Target, message: str) -> None:
    with pytest.raises(UserError, match=message):
        chosen(name, target, 3)


@pytest.mark.parametrize(
    ("names", "by", "message"),
    [
        ("speed", "auto", "metrics='speed': wanted 'auto', or some of accuracy, balanced-accuracy, "),
        ("", "auto", "metrics='': wanted 'auto'"),
        ("auto f1", "auto", "metrics='auto f1': wanted 'auto'"),
        ("f1 auroc f1", "auto", "metrics='f1 auroc f1' names 'f1' twice"),
        ("a:accuracy", "auto", "metrics='a:accuracy' has the name of a built-in metric"),
        ("f1 auroc", "accuracy", "selection-metric='accuracy' is not measured: wanted 'auto', 'loss' or one of "
                                 "metrics='f1 auroc'"),
    ],
)  # fmt: skip
def test_settings_that_name_no_metric(names: str, by: str, message: str) -> None:
    assert message in " ".join(faults(names, by))
    with pytest.raises(UserError, match="metric"):
        parse({"metrics": names, "selection-metric": by})


@pytest.mark.parametrize(("by", "name"), [("auto", "f1"), ("auroc", "auroc"), ("loss", "loss")])
def test_the_first_metric_chooses_unless_another_is_named(by: str, name: str) -> None:
    assert faults("f1 auroc", by) == []
    assert selection(by, chosen("f1 auroc", "class", 3)).name == name


def test_a_selection_that_auto_does_not_measure() -> None:
    with pytest.raises(UserError, match='selection-metric="accuracy" is not measured: wanted "auto" or one of rmse'):
        selection("accuracy", chosen("auto", "value", 1))
