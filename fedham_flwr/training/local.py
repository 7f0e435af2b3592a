"""What one client's local training is given: its settings, its samples, and the order of its steps."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from fedham_flwr.core.errors import UserError
from fedham_flwr.data.batches import Kind
from fedham_flwr.training.losses import TASK_LOSS, LossSettings
from fedham_flwr.training.schedule import Schedule


class Samples(Protocol):
    """What training needs of a client's data (see `data.client_data.ClientData`)."""

    @property
    def features(self) -> Tensor:
        """Of all samples: uint8 [N, H, W, C] of images, integers [N, T + 1] of texts, float32 [N, F] of tables."""
        ...

    @property
    def labels(self) -> Tensor:
        """int64 [N] of classes, uint8 or bool [N, k] of labels, float32 [N] or [N, k] of values."""
        ...

    @property
    def kind(self) -> Kind:
        """What the samples are."""
        ...

    @property
    def splits(self) -> Mapping[str, Tensor]:
        """Split -> int64 [n], the client's sample numbers."""
        ...


@dataclass(frozen=True)
class LocalTraining:
    """The settings of local training in one round, by their names.

    Attributes:
        local_epochs: over the training split.
        batch_size: samples of a step.
        learning_rate: of the round.
        momentum: of sgd.
        weight_decay: of every optimiser.
        augment: whether batches are augmented.
        steps: in place of the epochs, whatever epochs these make; 0 for epochs.
        optimizer: sgd, adam, adamw, or the import path of another.
        nesterov: sgd: the gradient is that of a step ahead.
        beta1: adam and adamw: decay of the mean gradient.
        beta2: adam and adamw: decay of the mean squared gradient.
        max_grad_norm: a longer gradient is shortened to it; 0 for none.
        loss: the settings of the loss.
        optimizer_settings: of an optimiser that has settings of its own; None without.
        augmentation: how, one of `augment.AUGMENTATIONS` or the import path of another.
        augmentation_settings: of an augmentation that has settings of its own; None without.
    """

    local_epochs: int
    batch_size: int
    learning_rate: float
    momentum: float
    weight_decay: float
    augment: bool
    steps: int = 0
    optimizer: str = "sgd"
    nesterov: bool = False
    beta1: float = 0.9
    beta2: float = 0.999
    max_grad_norm: float = 0.0
    loss: LossSettings = TASK_LOSS
    optimizer_settings: object = None
    augmentation: str = "shift-flip"
    augmentation_settings: object = None

    def changed(self, **given: float | None) -> LocalTraining:
        """These settings with others in their place; None leaves one as it is."""
        return dataclasses.replace(self, **{name: value for name, value in given.items() if value is not None})  # type: ignore[arg-type]

    def reach(self, samples: int) -> float:
        """How far a constant gradient of length one would carry a model by sgd, momentum's run-up left aside.

        In the long run a step goes learning_rate / (1 - momentum), with and without Nesterov's step ahead.

        Args:
            samples: of the training split, at least 1.
        """
        steps = self.steps or self.local_epochs * math.ceil(samples / self.batch_size)
        return steps * self.learning_rate / (1 - self.momentum)

    def check_plain(self, method: str) -> None:
        """Refuse what is not plain SGD, for a method that takes local training's step for a multiple of the gradient.

        Args:
            method: the method, with the settings by which it does so.

        Raises:
            UserError: the optimiser is another one, or gradients are shortened.
        """
        if faults := self._not_plain():
            raise UserError(
                f"{method} takes what local training changes for a multiple of the gradient, which it is only with "
                f'optimizer="sgd" and max-grad-norm=0, not with {" and ".join(faults)}'
            )

    def check_own_steps(self, method: str) -> None:
        """Refuse what would change the optimiser's steps, for a method whose clients take steps of their own.

        Args:
            method: the method.

        Raises:
            UserError: the optimiser is another one, or gradients are shortened.
        """
        if faults := self._not_plain():
            raise UserError(
                f"{method} takes steps of its own, and no optimiser's: wanted "
                f'optimizer="sgd" and max-grad-norm=0, not {" and ".join(faults)}'
            )

    def _not_plain(self) -> list[str]:
        faults = [f'optimizer="{self.optimizer}"'] if self.optimizer != "sgd" else []
        return faults + ([f"max-grad-norm={self.max_grad_norm:g}"] if self.max_grad_norm else [])

    def check_task_loss(self, method: str) -> None:
        """Refuse settings of the loss, for a method that has losses of its own.

        Args:
            method: the method, with the setting by which it has them.

        Raises:
            UserError: the loss is not the task's as it is.
        """
        loss = self.loss
        faults = [f'loss="{loss.name}"'] if loss.name != "auto" else []
        faults += [f"label-smoothing={loss.label_smoothing:g}"] if loss.label_smoothing else []
        faults += [f'class-weights="{loss.class_weights}"'] if loss.class_weights != "none" else []
        if faults:
            raise UserError(
                f'{method} has losses of its own: wanted loss="auto", label-smoothing=0 and class-weights="none", not '
                f"{' and '.join(faults)}"
            )


def training_faults(training: LocalTraining, schedule: Schedule, full: float) -> list[str]:
    """What does not go together, a sentence each.

    Args:
        training: of any round.
        schedule: of the learning rate.
        full: the learning rate without it.
    """
    found, loss = [], training.loss
    if training.augmentation != "shift-flip" and not training.augment:
        found.append(
            f'augmentation="{training.augmentation}" says how, and augment=False that nothing is: set augment=true'
        )
    if training.nesterov and (training.optimizer != "sgd" or not training.momentum):
        found.append(
            f'nesterov=True needs optimizer="sgd" with momentum, not optimizer="{training.optimizer}" with '
            f"momentum={training.momentum:g}"
        )
    if schedule.warmup >= schedule.rounds:
        found.append(
            f"warmup-rounds={schedule.warmup} leaves none of num-server-rounds={schedule.rounds} at the full learning "
            "rate"
        )
    if schedule.kind == "cosine" and schedule.least > full:
        found.append(
            f"min-learning-rate={schedule.least:g} is above learning-rate={full:g}, from where the cosine falls"
        )
    if loss.name != "auto" and (loss.label_smoothing or loss.class_weights != "none"):
        found.append(
            f'label-smoothing and class-weights belong to the cross-entropy, not to loss="{loss.name}": wanted 0 and '
            '"none"'
        )
    return found


def steps(index: Tensor, training: LocalTraining, generator: torch.Generator) -> Iterator[tuple[int, Tensor]]:
    """The number of the epoch and the sample numbers of each step.

    Args:
        index: int64 [n], the sample numbers of the training split.
        training: epochs or steps, and batch size.
        generator: on the CPU; draws the order of each epoch.
    """
    taken = 0
    for epoch in itertools.count():
        if not len(index) or (epoch == training.local_epochs and not training.steps):
            return
        for chosen in torch.split(index[torch.randperm(len(index), generator=generator)], training.batch_size):
            yield epoch, chosen
            taken += 1
            if taken == training.steps:
                return
