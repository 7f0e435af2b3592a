"""The client half of every method, in which a method fills in `start` and `train`, and Flower's NumPyClient of it.

Personal tensors go into the client's state and into no message. What is sent, what the client uses and what it keeps
are three things, which `train` gives in an `Outcome`.
"""

from __future__ import annotations

import dataclasses
import logging
import math
import re
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from flwr.client import NumPyClient
from flwr.common import NDArrays, Scalar

from fedham_flwr.core import parameters
from fedham_flwr.core.errors import UserError
from fedham_flwr.core.methods import Method
from fedham_flwr.core.parameters import Params
from fedham_flwr.core.seeding import torch_stream
from fedham_flwr.data.clients import ClientData
from fedham_flwr.federation.contract import Outcome
from fedham_flwr.federation.stages import ADAPT, EVALUATE, MEET, TRAIN, Stage
from fedham_flwr.federation.wire import Download
from fedham_flwr.models import export
from fedham_flwr.settings import Settings
from fedham_flwr.state.store import ClientState, StateLostError, StateNotFoundError
from fedham_flwr.training.local import Samples
from fedham_flwr.training.trainer import GradientTerm, Loss, Predictor, Scores, Trainer

log = logging.getLogger("fedham_flwr")

MOST_NATS = 700.0
"""A mean loss beyond this has no perplexity that a float could hold."""


@dataclass(frozen=True)
class Job:
    """What a client half works with, for one message.

    Attributes:
        client: its id.
        settings: the run's.
        method: the method's declaration.
        data: the client's.
        trainer: the worker's model.
        state: what the client kept.
        download: what the server sent.
        stage: the kind of exchange.
    """

    client: str
    settings: Settings
    method: Method
    data: ClientData
    trainer: Trainer
    state: ClientState
    download: Download
    stage: Stage = TRAIN


class RoundClient:
    """A method's client half, for one message.

    Args:
        job: what to work with.

    Attributes:
        job: as given.
        settings: the run's.
        own: the method's own settings, an instance of the dataclass that its `Method` names.
        split: which tensors are shared and which personal.
        metrics: scores and seconds so far.
        extras: tensors of the method's own that are sent with the reply.
        restarted: the client has trained before, and what it had learned for itself was lost and starts again.
    """

    own: Any

    def __init__(self, job: Job) -> None:
        self.job = job
        self.settings = job.settings
        self.own = job.settings.own
        self.split = job.method.split(job.trainer.manifest, self.own)
        self.metrics: dict[str, bool | bytes | float | int | str] = {}
        self.extras: Params = {}
        self.restarted = False
        self._loaded: Params | None = None  # the model that the trainer holds
        self._recalled = False  # whether the model to start from has anything of the client's own

    # ---- what a method says ----------------------------------------------------------------------------------------

    def start(self, received: Params) -> Params:
        """The model to start from, all of its tensors; by default what was received and what was kept.

        Args:
            received: shared tensors.
        """
        names = self.job.trainer.manifest.names()
        return parameters.merge(received, self.recall([name for name in names if name not in received]), names)

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
        """The answer to a question of the method's server half: tensors of the method's own.

        Raises:
            UserError: this method asks nothing.
        """
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
        samples: Samples | None = None,
        purpose: str = "batches",
        each_round: bool = True,
    ) -> Params:
        """Train a model on the client's training split.

        Args:
            model: all tensors to start from.
            only: names of the parameters to train, by whole layer groups; by default all.
            epochs: by default those of the settings, or their steps.
            steps: by default as many as the epochs make. A novel client takes `novel-steps` steps in any case.
            learning_rate: by default that of the settings in this round.
            loss: a method's own, of the model, inputs and targets; by default that of the task.
            gradient_term: a method's own term of the gradient, see `training.trainer.GradientTerm`.
            samples: in place of the client's data.
            purpose: name of the random stream that orders the samples; a second fit in a round needs another.
            each_round: whether that order differs from round to round.

        Returns:
            All tensors of the trained model, on the CPU.

        Raises:
            UserError: training diverged.
        """
        job = self.job
        if epochs is not None and steps is None:
            steps = 0  # the epochs that are given go before the steps of the settings
        given: dict[str, Any] = {"local_epochs": epochs, "steps": steps, "learning_rate": learning_rate}
        if job.stage in (MEET, ADAPT):
            given["steps"] = self.settings.novel_steps
        if job.stage is ADAPT:
            only = (*self.split.adapted, *self.split.personal)
        training = self.settings.local_training(job.download.round)
        training = dataclasses.replace(training, **{name: value for name, value in given.items() if value is not None})
        stream = torch_stream(self.settings.seed, purpose, job.download.round if each_round else 0, job.client)
        with self.clock("train"):
            self._load(model)
            self._loaded = None
            job.trainer.fit(samples or job.data, training, stream, gradient_term, loss, only)
        self._loaded = read_checked(job.trainer)
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
        self._load(model)
        training = self.settings.local_training(self.job.download.round)
        return self.job.trainer.gradient(samples, "train", count, generator, training.loss)

    def score(self, model: Params, split: str) -> Scores:
        """The scores of a model on one of the client's splits, with the method's predictor."""
        with self.clock("evaluate"):
            self._load(model)
            return self.job.trainer.evaluate(self.job.data, split, self.predictor())

    def on_device(self, model: Params) -> Params:
        """A model's parameters where the trainer computes, as a gradient term needs them."""
        return {name: model[name].to(self.job.trainer.device) for name in self.job.trainer.parameter_names}

    def recall(self, names: Sequence[str], first: Mapping[str, torch.Tensor] | None = None) -> Params:
        """Tensors that the client kept; one that has never trained has the first ones.

        Args:
            names: of tensors of the model, or of the method's own.
            first: what a client starts with; by default the model's first tensors.

        Raises:
            UserError: what a client that has trained had learned for itself is lost, and `lost-state` is refuse.
            StateLostError: shared tensors are lost; the server has them and sends them when it hears of it.
        """
        first = self.job.trainer.initial if first is None else first
        if not names:
            return {}
        self._recalled = True
        try:
            kept = self.job.state.load()
        except StateNotFoundError as error:
            return self._without(names, error, first)
        if missing := [name for name in names if name not in kept]:
            what = f"client {self.job.client} has not kept {', '.join(missing)}"
            kept |= self._without(missing, StateNotFoundError(what), first)
        return {name: kept[name] for name in names}

    @cached_property
    def memory(self) -> Params:
        """All that was kept; nothing before the first round."""
        try:
            return self.job.state.load()
        except StateNotFoundError:
            return {}

    @property
    def has_learned(self) -> bool:
        """Whether this client must have kept something, so that it is lost if nothing is there."""
        return self.job.download.has_trained or self.job.state.was_set_aside()

    @property
    def received_names(self) -> tuple[str, ...]:
        """Names of the shared tensors that came, in the model's order."""
        return tuple(name for name in self.split.shared if name in self.job.download.params)

    @property
    def examples(self) -> int:
        """Training samples of this client."""
        return len(self.job.data.splits["train"])

    @property
    def age(self) -> int:
        """Rounds since the client made the personal state that it starts from; 0 if it starts from none.

        Below 0 if that is of a later round, since the server went back to an earlier checkpoint.
        """
        made = self.job.state.round
        return 0 if made is None else self.job.download.round - made

    @contextmanager
    def clock(self, purpose: str) -> Iterator[None]:
        """Count the seconds within as the client's, for a purpose."""
        began = time.perf_counter()
        yield
        key = f"seconds/{purpose}"
        self.metrics[key] = float(self.metrics.get(key, 0.0)) + time.perf_counter() - began

    # ---- one function for each kind of exchange ----------------------------------------------------------------------

    def improve(self, received: Params) -> Params:
        """Train: score the model to start from, train it, score what the client uses; the shared tensors after it."""
        outcome = self._improve(received)
        return {name: outcome.send[name] for name in self.split.shared}

    def assess(self, received: Params) -> Params:
        """Evaluate: score the model to start from, and what training makes of it, which is then forgotten.

        Training is left out between rounds when the model that the client uses is the one before it.
        """
        start = self._start(received)
        if self.job.download.closing or self.job.method.personal_model == "after":
            self._use(self.train(start))
        return {}

    def personalise(self, received: Params) -> Params:
        """After the last round: train once more, by the method's rules, and keep what becomes of it."""
        self._improve(received)
        self._export("after", asked=True)
        return {}

    def meet(self, received: Params) -> Params:
        """A novel client: score what it is given; if it adapts alone, do so and score again."""
        start = self._start(received)
        if not self.split.adapted:
            self._use(self.train(start), asked=True)
        return {}

    def adapt(self, received: Params) -> Params:
        """A novel client's turn: train the adapted tensors and what is personal; the former go back."""
        outcome = self.train(self.start(received))
        if kept := {name: outcome.use[name] for name in self.split.personal}:
            self.job.state.save(kept, self.job.download.round)
        return {name: outcome.send[name] for name in self.split.adapted}

    def assess_adapted(self, received: Params) -> Params:
        """A novel client: score what the server has made of the turns."""
        self._load(self.start(received))
        self._score("personal", "after")
        self._export("after", asked=True)
        return {}

    def reply(self, _received: Params) -> Params:
        """Answer the method's question."""
        self.extras = self.answer()
        return {}

    # ---- their steps -----------------------------------------------------------------------------------------------

    def _start(self, received: Params) -> Params:
        """The model to start from, scored."""
        start = self.start(received)
        self._load(start)
        self._score("personal" if self.job.download.own or self._recalled else "global", "before")
        if self.job.stage is EVALUATE:
            self._export("before")
        return start

    def _improve(self, received: Params) -> Outcome:
        outcome = self.train(self._start(received))
        self._load(outcome.use)
        self._score("personal", "after")
        if outcome.keep:
            self.job.state.save(outcome.keep, self.job.download.round)
        self.extras = {**self.extras, **outcome.extras}
        return outcome

    def _use(self, outcome: Outcome, asked: bool = False) -> None:
        """Score and export the model that the client uses."""
        self._load(outcome.use)
        self._score("personal", "after")
        self._export("after", asked)

    def _load(self, model: Params) -> None:
        if model is not self._loaded:
            self.job.trainer.load(model)
            self._loaded = model

    def _without(self, names: Sequence[str], error: StateNotFoundError, first: Mapping[str, torch.Tensor]) -> Params:
        """What a client starts with that has not kept these tensors."""
        if self.has_learned:
            lost = f"{error}, though it has trained in this training"
            if set(names) & set(self.split.shared):
                raise StateLostError(lost) from error
            if set(names) <= set(self.job.trainer.manifest.buffers):
                log.warning("%s: its running statistics start again", lost)  # training mends them
            elif self.settings.lost_state == "refuse":
                raise UserError(f"{lost}: what it had learned is lost ({_few(names)}); {error.ways}") from error
            else:
                log.warning(
                    "%s: what it had learned is lost (%s), and it starts again from the first tensors",
                    lost,
                    _few(names),
                )
            self.restarted = True
        return {name: first[name] for name in names}

    def _score(self, model: str, phase: str) -> None:
        data = self.job.data
        with self.clock("evaluate"):
            predictor = self.predictor()
        for split in ("validation", "test"):
            if not len(data.splits[split]):
                continue
            with self.clock("evaluate"):
                scores = self.job.trainer.evaluate(data, split, predictor)
            key = f"{split}/{model}/{phase}"
            self.metrics |= {f"{key}/accuracy": scores.accuracy, f"{key}/loss": scores.loss, f"n/{split}": scores.n}
            if data.kind == "text":
                self.metrics[f"{key}/perplexity"] = math.exp(min(scores.loss, MOST_NATS))

    def _export(self, phase: str, asked: bool = False) -> None:
        download, job = self.job.download, self.job
        if not download.export or not (asked or phase == job.method.personal_model):
            return
        label = {
            "client": job.client,
            "strategy": self.settings.strategy,
            "phase": phase,
            **export.label(self.settings.model, download.shape, download.classes, self.settings.networks()),
            **(job.data.scaling.label() if job.data.scaling else {}),
        }
        export.write_model(Path(download.export), job.client, job.trainer.state_dict(), label)


class FlowerClient(NumPyClient):
    """A method's client half as Flower's NumPyClient.

    Args:
        half: for one message.
    """

    def __init__(self, half: RoundClient) -> None:
        self._half = half

    def fit(self, parameters: NDArrays, config: Mapping[str, Scalar]) -> tuple[NDArrays, int, dict[str, Scalar]]:
        """A round of training.

        Args:
            parameters: the shared tensors that came, in the model's order.
            config: not used; what the server says beside them is in the job's download.

        Returns:
            The shared tensors after training, the number of training samples, and the scores.
        """
        after = self._half.improve(self._received(parameters))
        return [tensor.numpy() for tensor in after.values()], self._half.examples, self._half.metrics

    def evaluate(self, parameters: NDArrays, config: Mapping[str, Scalar]) -> tuple[float, int, dict[str, Scalar]]:
        """An evaluation; arguments as for `fit`.

        Returns:
            The loss on the test split of the model to start from, the number of test samples, and the scores.
        """
        self._half.assess(self._received(parameters))
        loss = next(value for key, value in self._half.metrics.items() if re.fullmatch("test/.*/before/loss", key))
        return float(loss), len(self._half.job.data.splits["test"]), self._half.metrics

    def _received(self, arrays: NDArrays) -> Params:
        return dict(zip(self._half.received_names, map(torch.from_numpy, arrays), strict=True))


def read_checked(trainer: Trainer) -> Params:
    """All tensors of a trained model.

    Raises:
        UserError: a tensor is not finite; nothing of it may be kept or sent.
    """
    model = trainer.read(trainer.manifest.names())
    for name, tensor in model.items():
        if not parameters.all_finite(tensor):
            raise UserError(f"training diverged: {name} holds NaN or infinity; lower learning-rate")
    return model


def _few(names: Sequence[str]) -> str:
    rest = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + rest
