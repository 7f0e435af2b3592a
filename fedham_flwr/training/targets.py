"""The loss of each target: cross-entropy of classes, binary cross-entropy of labels, squared error of values.

Shape letters: b batch, T length of a text, K classes, k labels or values.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, mse_loss

from fedham_flwr.data.batches import target_of


def task_loss(outputs: Tensor, targets: Tensor, reduction: str = "mean") -> Tensor:
    """The loss of a batch; in nats, or in squared units of the values.

    Args:
        outputs: logits [b, K] of classes, [b, T, K] of texts, [b, k] of labels; values [b, k] or [b].
        targets: int64 [b] of classes, int64 [b, T] of texts, uint8 or bool [b, k] of labels, float32 [b] or [b, k] of
            values.
        reduction: mean or sum; over samples, positions, labels and values alike.

    Raises:
        ValueError: there is not one output for each target.
    """
    target = target_of(targets)
    if target in ("class", "next-token"):
        return cross_entropy(outputs.flatten(0, -2), targets.flatten(), reduction=reduction)
    outputs, targets = aligned(outputs, targets)
    if target == "multi-label":
        return binary_cross_entropy_with_logits(outputs, targets.to(outputs.dtype), reduction=reduction)
    return mse_loss(outputs, targets.to(outputs.dtype), reduction=reduction)


def aligned(outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Outputs and targets as [b, k] both, where a single value may be given without its dimension.

    Raises:
        ValueError: their shapes differ, which would otherwise be broadcast.
    """
    outputs = outputs[:, None] if outputs.dim() == 1 else outputs
    targets = targets[:, None] if targets.dim() == 1 else targets
    if outputs.shape != targets.shape:
        raise ValueError(f"outputs of shape {tuple(outputs.shape)} for targets of shape {tuple(targets.shape)}")
    return outputs, targets


def loss_terms(targets: Tensor) -> int:
    """Over how many terms the loss is a mean: predictions; for labels and values each of the k counts."""
    return targets.numel()


def predictions(targets: Tensor) -> int:
    """How many predictions there are: samples, or positions of texts."""
    return targets.numel() if target_of(targets) == "next-token" else len(targets)
