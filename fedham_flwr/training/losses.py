"""The losses of local training: that of the task by its name, or a user's own by its import path."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from fedham_flwr.core import imports
from fedham_flwr.core.errors import UserError, first_line
from fedham_flwr.data.batches import target_of
from fedham_flwr.training.targets import task_loss

TargetLoss = Callable[[Tensor, Tensor], Tensor]
"""The mean loss of a batch: of the network's outputs and their targets; a scalar, in nats where it is a likelihood."""


@dataclass(frozen=True)
class LossSettings:
    """Which loss local training descends.

    Attributes:
        name: auto, the task's, or the import path of a function of (outputs, targets) or of what makes one.
        label_smoothing: of the cross-entropy, in [0, 1).
        class_weights: of the cross-entropy: none or balanced.
        own: the settings of a loss that has some of its own; None without.
    """

    name: str = "auto"
    label_smoothing: float = 0.0
    class_weights: Literal["none", "balanced"] = "none"
    own: object = None


TASK_LOSS = LossSettings()
"""The task's loss as it is."""


def make_cross_entropy(settings: LossSettings, targets: Callable[[], Tensor]) -> TargetLoss:
    """The mean cross-entropy of all predictions, with label smoothing and class weights as torch has them.

    With balanced weights, class k of K weighs n / (K n_k), of n targets of which n_k are of the class, and 0 if none
    is; the mean is the sum of the weighted losses over that of the targets' weights.

    Args:
        settings: label smoothing, and whether classes are weighed.
        targets: gives all targets of the training split, int64; asked only where classes are weighed.

    Returns:
        A loss of logits [b, K] or [b, T, K] and targets [b] or [b, T].
    """
    counted = targets() if settings.class_weights == "balanced" else None
    weights: list[Tensor] = []  # made with the first batch, which shows how many classes there are

    def loss(outputs: Tensor, wanted: Tensor) -> Tensor:
        if target_of(wanted) not in ("class", "next-token"):
            given = f"label-smoothing={settings.label_smoothing:g} and class-weights={settings.class_weights!r}"
            raise UserError(f"{given} are for classes, and the target is {target_of(wanted)}: wanted 0.0 and 'none'")
        if counted is not None and not weights:
            weights.append(balanced(counted, outputs.shape[-1]))
        return cross_entropy(
            outputs.flatten(0, -2),
            wanted.flatten(),
            weight=weights[0] if weights else None,
            label_smoothing=settings.label_smoothing,
        )

    return loss


def balanced(targets: Tensor, classes: int) -> Tensor:
    """Weights by which every class that is there counts the same: float32 [classes], on the targets' device.

    Args:
        targets: int64 of any shape, each below `classes`.
        classes: K.
    """
    counts = targets.flatten().bincount(minlength=classes)
    weights = counts.sum() / (classes * counts.clamp(min=1))
    return weights.where(counts > 0, 0.0).to(torch.float32)


def make(settings: LossSettings, targets: Callable[[], Tensor], device: torch.device) -> TargetLoss:
    """The loss that the setting `loss` names.

    Args:
        settings: which one, and what it needs to know.
        targets: gives all targets of the training split, on the device.
        device: where outputs and targets are.

    Raises:
        UserError: the import path leads to no loss.
    """
    if settings.name != "auto":
        return _own(settings, device)
    if settings == TASK_LOSS:
        return task_loss
    return make_cross_entropy(settings, targets)


def _own(settings: LossSettings, device: torch.device) -> TargetLoss:
    """The user's."""
    what = f'loss="{settings.name}"'
    found = imports.load_function("loss", settings.name, settings.own, "a function of (outputs, targets)")
    name = settings.name.rpartition(":")[2].rpartition(".")[2]
    if isinstance(found, nn.Module):
        found = found.to(device)

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        if outputs.dim() == targets.dim() + 1 and not targets.is_floating_point():
            outputs, targets = outputs.flatten(0, -2), targets.flatten()  # a text's positions are predictions too
        mean = found(outputs, targets)
        if not (isinstance(mean, Tensor) and mean.dim() == 0 and mean.is_floating_point()):
            gave = tuple(mean.shape) if isinstance(mean, Tensor) else type(mean).__name__
            raise UserError(f"{what}: {name} gives {gave}, and wanted is the mean loss, a tensor without dimensions")
        if torch.is_grad_enabled() and not mean.requires_grad:
            raise UserError(f"{what}: what {name} gives does not depend on the outputs, so that nothing can be trained")
        return mean

    return loss


def check(settings: LossSettings, outputs: Tensor, targets: Tensor) -> None:
    """Try a loss that is not the task's as it is.

    Args:
        settings: which loss.
        outputs: such as the network gives for a batch.
        targets: theirs.

    Raises:
        UserError: the import path leads to no loss, or it cannot be called with these.
    """
    if settings == TASK_LOSS:
        return
    loss, guess = make(settings, lambda: targets, outputs.device), outputs.detach().clone().requires_grad_()
    try:
        loss(guess, targets)
    except UserError:
        raise
    except Exception as error:  # whatever the user's own code raises
        raise UserError(
            f'loss="{settings.name}" cannot be called with outputs {list(outputs.shape)} and targets '
            f"{list(targets.shape)}: {type(error).__name__}: {first_line(error)}"
        ) from error
