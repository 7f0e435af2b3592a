"""Local training and evaluation: one training loop and one evaluation loop for every method.

Images stay uint8 in the memory-mapped data set; a batch is gathered by index and scaled when needed. Networks run in
channels_last, and the optimiser is made anew for every call.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from fedham_flwr.core import parameters
from fedham_flwr.core.errors import DivergedError
from fedham_flwr.core.parameters import Manifest, Params
from fedham_flwr.models import heads
from fedham_flwr.models.grouping import manifest_of
from fedham_flwr.training import augment, losses, recalibration
from fedham_flwr.training.local import LocalTraining, Samples, steps
from fedham_flwr.training.losses import TASK_LOSS, LossSettings
from fedham_flwr.training.measurement import Measurement, Scores
from fedham_flwr.training.metrics import Metric
from fedham_flwr.training.modes import seeded, trained_of, training_only
from fedham_flwr.training.own_loss import Batch
from fedham_flwr.training.split_rows import SplitRows
from fedham_flwr.training.step_rules import StepRule
from fedham_flwr.training.stepping import GradientTerm, stepping

EVALUATION_BATCH = 256
"""Larger batches leave the processor's caches and are slower."""

Loss = Callable[[nn.Module, Tensor, Tensor], Tensor]
"""The loss of a batch: of the model, its inputs and their targets; a scalar in nats."""
Predictor = Callable[[nn.Module, Tensor], Tensor]
"""What is scored, of the model and a batch of inputs: logits [b, k], or [b, T, k] of texts."""


class Trainer:
    """One process's model. A client's tensors are copied into it, so a worker holds one model however many it serves.

    Args:
        model: a network.
        device: where it runs.
        precision: "fp32", or "bf16" for autocast to bfloat16.
        manifest: the model's; by default by the layer groups that it declares.

    Attributes:
        manifest: the model's.
        initial: the tensors it was built with.
        parameter_names: names of the parameters, in the model's order.
    """

    def __init__(
        self, model: nn.Module, device: torch.device, precision: str, manifest: Manifest | None = None
    ) -> None:
        self.manifest = manifest or manifest_of(model, [])
        self.initial: Params = parameters.read(model, self.manifest.names())
        self.device = device
        self.bf16 = precision == "bf16"
        self._model = model.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.parameter_names = tuple(n for n, _ in self._model.named_parameters() if n in self.manifest.shapes)

    def load(self, params: Mapping[str, Tensor]) -> None:
        """Make the model that of `params` (every tensor of the manifest)."""
        parameters.load_(self._model, params)

    def read(self, names: Sequence[str]) -> Params:
        """Copies of the named tensors, on the CPU."""
        return parameters.read(self._model, names)

    def read_checked(self) -> Params:
        """Copies of all tensors, after training.

        Raises:
            DivergedError: a tensor is not finite; nothing of it may be kept or sent.
        """
        for name, tensor in (model := self.read(self.manifest.names())).items():
            if not parameters.all_finite(tensor):
                raise DivergedError(f"training diverged: {name} holds NaN or infinity; lower learning-rate")
        return model

    def state_dict(self) -> Params:
        """A copy of the whole state on the CPU, integer buffers included, as `load_state_dict` wants it."""
        return {
            n: t.detach().to("cpu", memory_format=torch.contiguous_format, copy=True)
            for n, t in self._model.state_dict().items()
        }

    def seconds(self) -> float:
        """A clock for the client's own work."""
        return time.perf_counter()

    def fit(
        self,
        samples: Samples,
        training: LocalTraining,
        generator: torch.Generator,
        gradient_term: GradientTerm | None = None,
        loss: Loss | None = None,
        only: Collection[str] | None = None,
        rule: StepRule | None = None,
    ) -> float:
        """Train on the client's training split, and return the mean loss per sample of the last epoch in nats.

        Args:
            samples: the client's data.
            training: epochs or steps, batch size, optimiser and loss.
            generator: decides the order of the samples, the augmentation and the dropout.
            gradient_term: a method's own term of the gradient.
            loss: a method's own loss; by default that of `training`.
            only: names of the parameters to train, the others stay as they are; by default all. A layer group of which
                none is trained keeps its running statistics too: it works as in evaluation.
            rule: a method's own step, in place of the optimiser's, of all parameters.

        Raises:
            UserError: the loss is NaN or infinite (DivergedError), or the data are to be augmented and are no images.
        """
        augmented, rows = augment.make(training, samples.kind), SplitRows.of(samples, "train", self.device)
        trained = trained_of(self._model, self.manifest, only)
        take = stepping(trained, training, gradient_term, rule)
        objective = loss or self._loss(training.loss, rows)
        self._model.train()
        epoch, seen, total = 0, 0, torch.zeros((), device=self.device)
        with training_only(self._model, self.manifest, only), seeded(self.device, generator.initial_seed()):
            for number, chosen in steps(rows.index, training, generator):
                if number != epoch:
                    epoch, seen, total = number, 0, torch.zeros((), device=self.device)
                x, y = rows.take(chosen)
                batch = Batch(augmented(x, generator), y)
                total += take(partial(self._backward_part, batch, objective, rule)) * len(chosen)
                seen += len(chosen)
        if not math.isfinite(mean := total.item() / max(1, seen)):
            rate = training.learning_rate
            raise DivergedError(f"training diverged: the loss is {mean}; lower learning-rate={rate:g}")
        return mean

    @torch.no_grad()
    def evaluate(
        self, samples: Samples, split: str, predictor: Predictor | None = None, metrics: Sequence[Metric] | None = None
    ) -> Scores:
        """Scores on one split of the client's data; the model's state does not change.

        Args:
            samples: the client's data.
            split: a non-empty split.
            predictor: a method's own way to predict; by default the model.
            metrics: what to measure beside the loss, see `metric_choice.chosen`; by default what `auto` stands for.
        """
        predict, measurement = predictor or (lambda model, x: model(x)), Measurement(metrics, self.device)
        for x, y in self._in_order(samples, split):
            with self._autocast():
                outputs = predict(self._model, x)
            measurement.add(outputs, y)
        return measurement.scores()

    @torch.no_grad()
    def encode(self, samples: Samples, split: str) -> tuple[Tensor, Tensor]:
        """What the last linear layer sees in a split: float32 [s, d] and targets int64 [s], on the model's device.

        Args:
            samples: the client's data.
            split: a non-empty split; s is the number of predictions in it.
        """
        found, targets, head = [], [], heads.head_name(self.manifest)
        for x, y in self._in_order(samples, split):
            with self._autocast():
                found.append(heads.features(self._model, head, x)[0].float().flatten(0, -2))
            targets.append(y.flatten())
        return torch.cat(found), torch.cat(targets)

    @torch.no_grad()
    def recalibrate(self, samples: Samples, generator: torch.Generator) -> None:
        """Take the running statistics of batch normalisation anew from the training split, see `recalibration`.

        Args:
            samples: the client's data.
            generator: on the CPU; puts the samples into parts.
        """
        rows = SplitRows.of(samples, "train", self.device)
        with recalibration.recalibrating(self._model, self.manifest) as told, self._autocast():
            for number, chosen in enumerate(recalibration.parts(rows.index, generator)):
                told(number)
                self._model(rows.take(chosen)[0])

    def _in_order(self, samples: Samples, split: str) -> Iterator[tuple[Tensor, Tensor]]:
        """The batches of a split, for a model that is not trained."""
        rows = SplitRows.of(samples, split, self.device)
        self._model.eval()
        for chosen in torch.split(rows.index, EVALUATION_BATCH):
            yield rows.take(chosen)

    def gradient(
        self, samples: Samples, split: str, count: int, generator: torch.Generator, loss: LossSettings = TASK_LOSS
    ) -> Params:
        """The gradient of the mean loss of a batch, as training would see it; the model does not change.

        Args:
            samples: the client's data.
            split: a non-empty split.
            count: samples of the batch, without replacement; fewer if the split is smaller.
            generator: on the CPU; draws the batch, and seeds dropout.
            loss: the settings of the loss; by default the task's.

        Returns:
            A tensor for each parameter, by name, on the model's device; valid until the next step.
        """
        rows = SplitRows.of(samples, split, self.device)
        buffers = [(buffer, buffer.clone()) for buffer in self._model.buffers()]
        self._model.train()
        with seeded(self.device, int(torch.randint(2**62, (), generator=generator))):
            chosen = rows.index[torch.randperm(len(rows.index), generator=generator)[:count]]
            self._backward(*rows.take(chosen), self._loss(loss, rows))
        for buffer, was in buffers:
            buffer.copy_(was)
        return {name: p.grad for name, p in self._model.named_parameters() if p.grad is not None}

    def _loss(self, settings: LossSettings, rows: SplitRows) -> Loss:
        """The loss that the settings name, of these samples."""

        def targets() -> Tensor:
            return torch.cat([rows.take(some)[1] for some in torch.split(rows.index, EVALUATION_BATCH)])

        loss = losses.make(settings, targets, self.device)
        return lambda model, x, y: loss(model(x), y)

    def _backward(self, x: Tensor, y: Tensor, loss: Loss) -> Tensor:
        with self._autocast():
            mean = loss(self._model, x, y)
        self._model.zero_grad()
        mean.backward()  # type: ignore[no-untyped-call]
        return mean.detach()

    def _backward_part(self, batch: Batch, loss: Loss, rule: StepRule | None, number: int) -> Tensor:
        """Of a part of a batch; of one without samples nothing."""
        part = batch.part(number, 1 if rule is None else rule.parts)
        if len(part.y):
            return self._backward(part.x, part.y, loss)
        self._model.zero_grad()
        return torch.zeros((), device=self.device)

    def _autocast(self) -> contextlib.AbstractContextManager[object]:
        return torch.autocast(self.device.type, torch.bfloat16) if self.bf16 else contextlib.nullcontext()
