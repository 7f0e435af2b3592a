"""The built-in metrics that take all outputs of a split at once, each None where it is not defined.

Those that are plain sums are computed here, the others by torchmetrics, whose import takes a client process several
seconds: regression and labels do without it unless it is asked for.

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
    right, _, there = _counts(outputs, targets)
    return _mean((right / there)[there > 0])


def f1(outputs: Tensor, targets: Tensor) -> float | None:
    """The mean of F1 over the classes that are there, or over the labels that a sample has."""
    right, said, there = _counts(outputs, targets)
    return _mean((2 * right / (said + there))[there > 0])


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
    """The mean gap of confidence and accuracy, over 15 bins of confidence, each by its share of the predictions.

    Source: Guo et al., "On Calibration of Modern Neural Networks", ICML 2017.
    """
    confidence, said = outputs.double().softmax(-1).max(-1)
    place = (confidence * BINS).long().clamp_max(BINS - 1)
    right, sure = (
        torch.zeros(BINS, dtype=torch.float64, device=outputs.device).index_add_(0, place, each)
        for each in ((said == targets).double(), confidence)
    )
    return float((right - sure).abs().sum() / len(targets))


def mae(outputs: Tensor, targets: Tensor) -> float | None:
    """The mean absolute error over all values."""
    found, wanted = aligned(outputs.double(), targets.double())
    return (found - wanted).abs().mean().item()


def rmse(outputs: Tensor, targets: Tensor) -> float | None:
    """The root of the mean squared error over all values."""
    found, wanted = aligned(outputs.double(), targets.double())
    return (found - wanted).square().mean().sqrt().item()


def r2(outputs: Tensor, targets: Tensor) -> float | None:
    """The coefficient of determination, as a mean over those of the k values that differ between samples."""
    found, wanted = aligned(outputs.double(), targets.double())
    differ = (wanted != wanted[:1]).any(0)
    around = (wanted - wanted.mean(0)).square().sum(0)
    return _mean((1 - (found - wanted).square().sum(0) / around)[differ])


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


def _counts(outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Of each class or label: how often it was rightly said, was said, and is there; float64 [K] or [k]."""
    if targets.dim() == 1:
        said, there = (one_hot(each, outputs.shape[-1]).double() for each in (outputs.argmax(-1), targets))
    else:
        said, there = (outputs > 0).double(), targets.double()
    return (said * there).sum(0), said.sum(0), there.sum(0)


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
