"""The losses of many clients at once: a mean for each client, of outputs that come as one folded batch.

Letters: m clients, b samples of each (fillers among them), K classes, k labels or values, T length of a text.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, log_softmax, mse_loss

from fedham_flwr.data.batches import target_of
from fedham_flwr.training.losses import LossSettings
from fedham_flwr.training.own_loss import means_of
from fedham_flwr.training.targets import aligned


def terms(outputs: Tensor, targets: Tensor) -> Tensor:
    """The loss of each prediction, label or value: [m b, T], [m b, k] or [m b, 1].

    Args:
        outputs: as for `targets.task_loss`.
        targets: as for `targets.task_loss`.
    """
    target = target_of(targets)
    if target in ("class", "next-token"):
        found = cross_entropy(outputs.flatten(0, -2), targets.flatten(), reduction="none")
        return found.view(len(targets), -1)
    outputs, targets = aligned(outputs, targets)
    if target == "multi-label":
        return binary_cross_entropy_with_logits(outputs, targets.to(outputs.dtype), reduction="none")
    return mse_loss(outputs, targets.to(outputs.dtype), reduction="none")


def means(
    outputs: Tensor,
    targets: Tensor,
    clients: int,
    real: Float[Tensor, "m b"] | None,
    settings: LossSettings,
    weights: Float[Tensor, "m K"] | None = None,
) -> Float[Tensor, " m"]:
    """The mean loss of each client's batch, as `losses.make` has it for one.

    Args:
        outputs: of a folded batch [m b, ...].
        targets: theirs.
        clients: m.
        real: 1 for a sample, 0 for a filler; by default all are samples.
        settings: the task's loss, with label smoothing and class weights.
        weights: of each client's classes; None where they are not weighed.
    """
    if settings.label_smoothing == 0 and weights is None:
        return means_of(terms(outputs, targets), clients, real)
    logs = log_softmax(outputs.flatten(0, -2), -1).view(clients, len(targets) // clients, -1, outputs.shape[-1])
    chosen = targets.view(*logs.shape[:3], 1)
    mask = torch.ones(logs.shape[:3], device=logs.device) if real is None else real.unsqueeze(2).expand(logs.shape[:3])
    hit, share, spread = logs.gather(3, chosen).squeeze(3), mask, logs.sum(3)
    if weights is not None:
        wide = weights[:, None, None].expand_as(logs)
        share, spread = mask * wide.gather(3, chosen).squeeze(3), (logs * wide).sum(3)
    smooth = settings.label_smoothing
    found = -(1 - smooth) * (hit * share).sum((1, 2)) - smooth / logs.shape[3] * (spread * mask).sum((1, 2))
    total = share.sum((1, 2))
    return found / total.where(total > 0, 1.0)  # a client may have no sample in a part of a batch


def sums(each: Tensor, owners: Tensor, clients: int) -> Tensor:
    """Sums of rows by their owner, in float64: each [r, ...] and owners int64 [r] -> [clients]."""
    total = torch.zeros(clients, dtype=torch.float64, device=each.device)
    return total.index_add_(0, owners, each.double().flatten(1).sum(1))
