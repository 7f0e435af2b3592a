"""The built-in metrics that torchmetrics computes, each None where it is not defined.

Letters: n predictions, K classes, k labels or values. Outputs are logits [n, K] of classes and [n, k] of labels, or
values [n, k] or [n]; targets are int64 [n], uint8 or bool [n, k], or float32 [n] or [n, k].
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from fedham_flwr.training.targets import aligned

BINS = 15
"""Of the calibration error."""
Score = Callable[[Tensor, Tensor], float | None]


def balanced_accuracy(outputs: Tensor, targets: Tensor) -> float | None:
    """The mean over the classes that are there of the share of each that was found: macro recall."""
    from torchmetrics.functional.classification import multiclass_recall

    found = multiclass_recall(outputs.argmax(-1), targets, max(2, outputs.shape[-1]), average=None, validate_args=False)
    return _mean(found[torch.unique(targets)])


def f1(outputs: Tensor, targets: Tensor) -> float | None:
    """The mean of F1 over the classes that are there, or over the labels that a sample has."""
    from torchmetrics.functional.classification import binary_f1_score, multiclass_f1_score

    if targets.dim() == 1:
        found = multiclass_f1_score(
            outputs.argmax(-1), targets, max(2, outputs.shape[-1]), average=None, validate_args=False
        )
        return _mean(found[torch.unique(targets)])
    there = targets.bool().any(0).nonzero().flatten().tolist()
    return _mean(binary_f1_score((outputs[:, c] > 0).long(), targets[:, c].long(), validate_args=False) for c in there)


def auroc(outputs: Tensor, targets: Tensor) -> float | None:
    """The mean area under the ROC curve, one class or label against the rest; over those that have both sides."""
    from torchmetrics.functional.classification import binary_auroc

    pairs = _one_against_rest(outputs, targets)
    return _mean(binary_auroc(probability, truth, validate_args=False) for probability, truth in pairs)


def average_precision(outputs: Tensor, targets: Tensor) -> float | None:
    """The mean average precision, one class or label against the rest; over those that have both sides."""
    from torchmetrics.functional.classification import binary_average_precision

    pairs = _one_against_rest(outputs, targets)
    return _mean(binary_average_precision(probability, truth, validate_args=False) for probability, truth in pairs)


def calibration_error(outputs: Tensor, targets: Tensor) -> float | None:
    """The mean gap of confidence and accuracy, over 15 bins of confidence, each by its share of the predictions."""
    from torchmetrics.functional.classification import multiclass_calibration_error

    probabilities = outputs.double().softmax(-1)
    return float(
        multiclass_calibration_error(probabilities, targets, outputs.shape[-1], BINS, "l1", validate_args=False)
    )


def mae(outputs: Tensor, targets: Tensor) -> float | None:
    """The mean absolute error over all values."""
    from torchmetrics.functional.regression import mean_absolute_error

    return float(mean_absolute_error(*_values(outputs, targets)))


def rmse(outputs: Tensor, targets: Tensor) -> float | None:
    """The root of the mean squared error over all values."""
    from torchmetrics.functional.regression import mean_squared_error

    return float(mean_squared_error(*_values(outputs, targets), squared=False))


def r2(outputs: Tensor, targets: Tensor) -> float | None:
    """The coefficient of determination, as a mean over the values that differ between samples."""
    from torchmetrics.functional.regression import r2_score

    found, wanted = aligned(outputs.double(), targets.double())
    differ = (wanted != wanted[:1]).any(0)
    return float(r2_score(found[:, differ], wanted[:, differ])) if differ.any() else None


FUNCTIONS: Mapping[str, Score] = {
    "balanced-accuracy": balanced_accuracy,
    "f1": f1,
    "auroc": auroc,
    "average-precision": average_precision,
    "calibration-error": calibration_error,
    "mae": mae,
    "rmse": rmse,
    "r2": r2,
}
"""Metric -> what measures it, of the outputs and targets of a split."""


def _values(outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    found, wanted = aligned(outputs.double(), targets.double())
    return found.flatten(), wanted.flatten()


def _one_against_rest(outputs: Tensor, targets: Tensor) -> Iterable[tuple[Tensor, Tensor]]:
    """Probabilities float64 [n] and truths int64 [n] of each class or label that has positives and negatives."""
    probabilities = outputs.double().softmax(-1) if targets.dim() == 1 else outputs.double().sigmoid()
    truths = one_hot(targets, outputs.shape[-1]) if targets.dim() == 1 else targets.long()
    counts = truths.sum(0)
    for column in ((counts > 0) & (counts < len(truths))).nonzero().flatten().tolist():
        yield probabilities[:, column].contiguous(), truths[:, column].contiguous()


def _mean(found: Tensor | Iterable[Tensor]) -> float | None:
    each = [float(one) for one in found]
    return sum(each) / len(each) if each else None
