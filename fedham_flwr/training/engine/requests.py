"""What a client half asks of the engine: to train a model, for a gradient, for scores, for running statistics."""

from __future__ import annotations

from collections.abc import Collection, Hashable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from fedham_flwr.core.parameters import Params
from fedham_flwr.training.guard import whole
from fedham_flwr.training.local import LocalTraining, Samples
from fedham_flwr.training.losses import LossSettings
from fedham_flwr.training.measurement import STREAMED
from fedham_flwr.training.metrics import Metric
from fedham_flwr.training.own_loss import LossOfClients
from fedham_flwr.training.recalibration import FEWEST
from fedham_flwr.training.step_rules import StepRule
from fedham_flwr.training.stepping import GradientTerm
from fedham_flwr.training.trainer import Loss, Predictor


class StackableTerm(Protocol):
    """A term of the gradient that can be computed for many clients at once."""

    def __call__(self, name: str, param: Tensor, gradient: Tensor) -> None:
        """Change a gradient in place: of one client; or, of a stack, of its first clients [m, ...]."""
        ...

    def stacked(self, others: Sequence[StackableTerm]) -> GradientTerm:
        """One term for several clients.

        Args:
            others: the terms of all of them, of this class, in order; this one is the first.
        """
        ...


class StackableLoss(Protocol):
    """A loss of a method's own that can be computed for many clients at once."""

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        """The mean loss of one client's batch."""
        ...

    def stacked(self, others: Sequence[StackableLoss]) -> LossOfClients:
        """The mean loss of each of several clients; see `own_loss.OwnLoss`.

        Args:
            others: the losses of all of them, of this class, in order; this one is the first.
        """
        ...


@dataclass(frozen=True)
class Fit:
    """A request to train, with the arguments of `Trainer.fit`.

    Attributes:
        model: all tensors to start from.
        samples: the client's data.
        training: its settings.
        generator: nothing has been drawn from it yet.
        gradient_term: a method's own term.
        loss: a method's own loss.
        only: names of the parameters to train.
        rule: a method's own step.
    """

    model: Params
    samples: Samples
    training: LocalTraining
    generator: torch.Generator
    gradient_term: GradientTerm | None = None
    loss: Loss | None = None
    only: Collection[str] | None = None
    rule: StepRule | None = None

    def like(self) -> Hashable:
        """What must be equal for requests to be carried out together; None for one that is carried out alone."""
        training = self.training
        augmented = training.augment and training.augmentation != "shift-flip"
        own = (self.loss, self.gradient_term)
        if not all(map(_stackable, own)) or training.loss.name != "auto" or ":" in training.optimizer or augmented:
            return None
        only = None if self.only is None else frozenset(self.only)
        parts = type(self.gradient_term), type(self.loss), type(self.rule)
        return "fit", training, only, *parts, *_data(self.samples)

    def size(self) -> int:
        """Steps that it takes."""
        count = len(self.samples.splits["train"])
        if not count:
            return 0
        return self.training.steps or self.training.local_epochs * -(-count // self.training.batch_size)


@dataclass(frozen=True)
class Gradient:
    """A request for a gradient, with the arguments of `Trainer.gradient`.

    Attributes:
        model: all tensors.
        samples: the client's data.
        split: of them.
        count: samples of the batch.
        generator: draws it.
        loss: settings of the loss.
    """

    model: Params
    samples: Samples
    split: str
    count: int
    generator: torch.Generator
    loss: LossSettings

    def like(self) -> Hashable:
        """As of `Fit`."""
        return None if self.loss.name != "auto" else ("gradient", self.loss, *_data(self.samples))

    def size(self) -> int:
        """Samples of the batch."""
        return min(self.count, len(self.samples.splits[self.split]))


@dataclass(frozen=True)
class Score:
    """A request for scores, with the arguments of `Trainer.evaluate`.

    Attributes:
        model: all tensors.
        samples: the client's data.
        split: of them.
        predictor: a method's own.
        metrics: what to measure.
    """

    model: Params
    samples: Samples
    split: str
    predictor: Predictor | None
    metrics: Sequence[Metric] | None

    def like(self) -> Hashable:
        """As of `Fit`."""
        if self.predictor is not None:
            return None
        return "score", *_data(self.samples), self.streamed

    @property
    def streamed(self) -> bool:
        """Whether sums over the predictions are all that the metrics need."""
        return self.metrics is not None and all(metric.name in STREAMED for metric in self.metrics)

    def size(self) -> int:
        """Samples to score."""
        return len(self.samples.splits[self.split])


@dataclass(frozen=True)
class Encode:
    """A request for features, with the arguments of `Trainer.encode`.

    Attributes:
        model: all tensors.
        samples: the client's data.
        split: of them.
    """

    model: Params
    samples: Samples
    split: str

    def like(self) -> Hashable:
        """As of `Fit`."""
        return "encode", *_data(self.samples)

    def size(self) -> int:
        """Samples to encode."""
        return len(self.samples.splits[self.split])


@dataclass(frozen=True)
class Recalibrate:
    """A request for running statistics, with the arguments of `Trainer.recalibrate`.

    Attributes:
        model: all tensors.
        samples: the client's data.
        generator: puts them into parts; nothing has been drawn from it yet.
    """

    model: Params
    samples: Samples
    generator: torch.Generator

    def like(self) -> Hashable:
        """As of `Fit`."""
        return "recalibrate", *_data(self.samples)

    def size(self) -> int:
        """Samples to look at; none of a client that has too few."""
        count = len(self.samples.splits["train"])
        return 0 if count < FEWEST else count


Request = Fit | Gradient | Score | Encode | Recalibrate


def _stackable(part: object) -> bool:
    """Whether a method's own part of training is none, or says what it is for many clients."""
    return part is None or hasattr(part, "stacked")


def _data(samples: Samples) -> tuple[Hashable, ...]:
    """What kind of data samples are, and where they lie."""
    features, labels = whole(samples.features), whole(samples.labels)
    return samples.kind, features.dtype, features.shape[1:], labels.dtype, labels.shape[1:]
