"""The client half of every method, in which a method fills in `start` and `train`, with the toolbox that they call.

Personal tensors go into the client's state and into no message. What is sent, what the client uses and what it keeps
are three things, which `train` gives in an `Outcome`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import torch

from fedham_flwr.core import trees
from fedham_flwr.core.errors import DivergedError, UserError
from fedham_flwr.core.parameters import Params
from fedham_flwr.core.seeding import torch_stream
from fedham_flwr.federation.contract import Outcome
from fedham_flwr.federation.job import Job
from fedham_flwr.federation.stages import ADAPT, MEET, TRAIN
from fedham_flwr.state.memory import Memory
from fedham_flwr.training.local import LocalTraining, Samples
from fedham_flwr.training.measurement import Scores
from fedham_flwr.training.step_rules import StepRule, placed
from fedham_flwr.training.stepping import GradientTerm
from fedham_flwr.training.trainer import Loss, Predictor


class RoundClient:
    """A method's client half, for one message.

    Args:
        job: what to work with.

    Attributes:
        job: as given.
        settings: the run's.
        own: the method's own settings, an instance of the dataclass that its `Method` names.
        split: which tensors are shared and which personal.
        metrics: scores and seconds so far; those of the test split are not among them.
        extras: tensors of the method's own that are sent with the reply.
        recalled: the model to start from has something that the client kept.
        kept: what the client remembers.
    """

    own: Any

    def __init__(self, job: Job) -> None:
        self.job = job
        self.settings = job.settings
        self.own = job.settings.own
        self.split = job.method.split_of(job.trainer.manifest, self.own, self.settings.personal)
        self.metrics: dict[str, bool | bytes | float | int | str] = {}
        self.extras: Params = {}
        self.kept = Memory(job.state, job.client, job.download.has_trained, self.settings.lost_state)
        self._loaded: Params | None = None  # the model that the trainer holds
        self.recalled = False

    # ---- what a method says ----------------------------------------------------------------------------------------

    def start(self, received: Params) -> Params:
        """The model to start from, all its tensors, given the shared ones; by default these and what was kept."""
        names, first = self.job.trainer.manifest.names(), self.job.trainer.initial
        rest = self.split.personal if self.settings.personal_training == "after-rounds" else ()
        there = {**received, **{name: first[name] for name in rest}}
        return trees.merge(there, self.recall([name for name in names if name not in there]), names)

    def train(self, start: Params) -> Outcome:
        """Local training, by default of the whole model on all of the client's data.

        Args:
            start: what `start` gave.
        """
        return self.outcome(self.fit(start))

    def predictor(self) -> Predictor | None:
        """What predicts with the model that is loaded; by default the model alone."""
        return None

    def answer(self) -> Params:
        """The answer to a question of the method's server half, tensors of the method's own; by default an error."""
        raise UserError(f"strategy={self.settings.strategy} asks its clients nothing before a round")

    # ---- the toolbox -----------------------------------------------------------------------------------------------

    def fit(
        self,
        model: Params,
        *,
        only: Collection[str] | None = None,
        epochs: int | None = None,
        steps: int | None = None,
        learning_rate: float | None = None,
        loss: Loss | None = None,
        gradient_term: GradientTerm | None = None,
        rule: StepRule | None = None,
        samples: Samples | None = None,
        purpose: str = "batches",
        each_round: bool = True,
    ) -> Params:
        """Train a model on the client's training split.

        Args:
            model: all tensors to start from.
            only: names of the parameters to train, by whole layer groups; by default all, see `personal-epochs`.
            epochs: by default those of the settings, or their steps.
            steps: by default as many as the epochs make. A novel client takes `novel-steps` steps in any case.
            learning_rate: by default that of the settings in this round.
            loss: a method's own, of the model, inputs and targets; by default that of the task.
            gradient_term: a method's own term of the gradient, see `training.stepping.GradientTerm`.
            rule: a method's own step in place of the optimiser's, see `training.step_rules`.
            samples: in place of the client's data.
            purpose: name of the random stream that orders the samples; a second fit in a round needs another.
            each_round: whether that order differs from round to round.

        Returns:
            All tensors of the trained model, on the CPU.

        Raises:
            UserError: training diverged.
        """
        job, alone = self.job, self.settings.personal_epochs
        steps = steps if epochs is None else (steps or 0)  # epochs that are given go before the steps of the settings
        if job.stage in (MEET, ADAPT):
            steps = self.settings.novel_steps
        elif alone and only is None and {*self.split.personal} & {*job.trainer.parameter_names}:
            only = self.split.shared
            if self.settings.personal_training == "each-round":  # in FedRep's order
                model = self.fit(model, only=self.split.personal, epochs=alone, samples=samples, purpose="head")
            elif job.download.closing:  # FedBABU's fine-tuning, of nothing but the loss on all samples
                only, epochs, steps, purpose, each_round = None, alone, 0, "personal-stage", False
                gradient_term = samples = None
        if job.stage is ADAPT:
            only = (*self.split.adapted, *self.split.personal)
        size = self.training.batch_size * (1 if rule is None else rule.parts)
        training = self.training.changed(local_epochs=epochs, steps=steps, learning_rate=learning_rate, batch_size=size)
        stream = torch_stream(self.settings.seed, purpose, job.download.round if each_round else 0, job.client)
        try:
            with self.clock("train"), placed(rule, job.trainer.device):
                self.load(model)
                self._loaded = None
                job.trainer.fit(samples or job.data, training, stream, gradient_term, loss, only, rule)
            self._loaded = job.trainer.read_checked()
        except DivergedError as error:
            if job.data.target != "value":
                raise
            raise DivergedError(f"{error}, or scale the values that are learned to about 1 (docs/data.md)") from error
        return self._loaded

    def outcome(self, after: Params) -> Outcome:
        """That of a model that is sent, used and kept as the split says."""
        return Outcome(after, after, {name: after[name] for name in self.split.personal})

    def gradient(self, model: Params, samples: Samples, count: int, generator: torch.Generator) -> Params:
        """The gradient of the mean loss of a batch of training samples at a model.

        Args:
            model: all tensors.
            samples: the client's data, or a part of them.
            count: samples of the batch.
            generator: draws the batch.

        Returns:
            A tensor for each parameter, on the model's device; valid until the next step.
        """
        self.load(model)
        return self.job.trainer.gradient(samples, "train", count, generator, self.training.loss)

    def score(self, model: Params, split: str) -> Scores:
        """The scores of a model on the training or validation split, with the method's predictor; test is refused."""
        with self.clock("evaluate"):
            self.load(model)
            measured = self.settings.measured(self.job.data.target, self.job.download.classes)
            return self.job.trainer.evaluate(self.job.data, split, self.predictor(), measured)

    def encode(self, model: Params, split: str) -> tuple[torch.Tensor, torch.Tensor]:
        """What a model's last linear layer sees in the training or validation split, see `Trainer.encode`."""
        self.load(model)
        return self.job.trainer.encode(self.job.data, split)

    def on_device(self, model: Params) -> Params:
        """The parameters among a model's tensors where the trainer computes, as a gradient term needs them."""
        return {n: model[n].to(self.job.trainer.device) for n in self.job.trainer.parameter_names if n in model}

    def recall(self, names: Sequence[str], first: Mapping[str, torch.Tensor] | None = None) -> Params:
        """Tensors that the client kept; one that has never trained has the first ones. See `state.memory.Memory`.

        Args:
            names: of tensors of the model, or of the method's own.
            first: what a client starts with; by default the model's first tensors.
        """
        first = self.job.trainer.initial if first is None else first
        self.recalled = self.recalled or bool(names)
        return self.kept.recall(names, first, self.split.shared, self.job.trainer.manifest.buffers)

    @cached_property
    def received_names(self) -> tuple[str, ...]:
        """Names of the shared tensors that came, in the model's order."""
        return tuple(name for name in self.split.shared if name in self.job.download.params)

    @property
    def training(self) -> LocalTraining:
        """The settings of local training in this round."""
        return self.settings.local_training(self.job.download.round)

    @property
    def trains(self) -> bool:
        """Whether what training makes of the model is sent and kept, and not only scored."""
        return self.job.stage is TRAIN

    @property
    def examples(self) -> int:
        """Training samples of this client."""
        return len(self.job.data.splits["train"])

    @property
    def age(self) -> int:
        """Rounds since the client made the state that it starts from, < 0 for that of a later round; 0 without one."""
        return 0 if (made := self.job.state.round) is None else self.job.download.round - made

    @contextmanager
    def clock(self, purpose: str) -> Iterator[None]:
        """Count the seconds within as the client's, for a purpose."""
        began = self.job.trainer.seconds()
        yield
        key = f"seconds/{purpose}"
        self.metrics[key] = float(self.metrics.get(key, 0.0)) + self.job.trainer.seconds() - began

    def load(self, model: Params) -> None:
        """Make the trainer's model this one, if it is not."""
        if model is not self._loaded:
            self.job.trainer.load(model)
            self._loaded = model
