"""A cohort as one program: many client halves run side by side, and what they ask for is carried out together.

Each client half runs in a greenlet, as it is written for one client, until it asks its trainer to fit, for a gradient
or for scores. When all have asked, requests that are alike are carried out as one computation and each half goes on
with its own result. A half does not know: its trainer has the face of `Trainer`.

What cannot be stacked runs one at a time, by `Trainer`: a network that failed the trial (see `folded`), or whose layers
are so large that nothing is gained; a loss, predictor, optimiser or term of the gradient of somebody's own.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, TypeVar

import torch
from greenlet import getcurrent, greenlet
from torch import Tensor

from fedham_flwr.core.errors import DivergedError
from fedham_flwr.core.parameters import Manifest, Params
from fedham_flwr.training.engine.engine import Answer, Engine
from fedham_flwr.training.engine.requests import Encode, Fit, Gradient, Recalibrate, Request, Score
from fedham_flwr.training.engine.trainer import Trained
from fedham_flwr.training.local import LocalTraining, Samples
from fedham_flwr.training.losses import TASK_LOSS, LossSettings
from fedham_flwr.training.measurement import Scores
from fedham_flwr.training.metrics import Metric
from fedham_flwr.training.step_rules import StepRule
from fedham_flwr.training.stepping import GradientTerm
from fedham_flwr.training.trainer import Loss, Predictor

AT_ONCE = 1024
"""Client halves that are under way at the same time."""

Result = TypeVar("Result")


class Task(greenlet):
    """A client half under way; its parent carries out what it asks for."""


def in_cohort() -> bool:
    """Whether this is called in a task of `run_together`."""
    return isinstance(getcurrent(), Task)


def run_together(tasks: Sequence[Callable[[], Result]]) -> list[Result]:
    """Run tasks side by side to their end, and carry out what they ask of their engines together.

    Args:
        tasks: each catches the errors of its own work; what it lets out ends all.

    Returns:
        What each gave, in their order.
    """
    results: dict[int, Result] = {}
    for start in range(0, len(tasks), AT_ONCE):
        _run(dict(enumerate(tasks[start : start + AT_ONCE], start)), results)
    return [results[place] for place in range(len(tasks))]


def _run(tasks: Mapping[int, Callable[[], Result]], results: dict[int, Result]) -> None:
    waiting: list[tuple[int, Task, Engine, Request]] = []

    def go_on(place: int, task: Task, *given: Any, error: BaseException | None = None) -> None:
        asked = task.switch(*given) if error is None else task.throw(error)
        if task.dead:
            results[place] = asked
        else:
            waiting.append((place, task, *asked))

    for place, work in tasks.items():
        go_on(place, Task(work))
    while waiting:
        now, waiting = waiting, []
        answers: dict[int, Answer] = {}
        for engine in {id(engine): engine for _, _, engine, _ in now}.values():
            asked = {place: request for place, _, other, request in now if other is engine}
            answers |= zip(asked, engine.answer(list(asked.values())), strict=True)
        for place, task, _, _ in now:
            answer = answers[place]
            go_on(place, task, answer, error=answer.error)


class CohortTrainer:
    """The trainer of one client half in a cohort, with the face of `Trainer`.

    Args:
        engine: carries out what is asked.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine, self._trainer = engine, engine.trainer
        self._model: Params = engine.trainer.initial
        self._bad = ""
        self._counts: Mapping[str, int] = {}
        self._waited = 0.0

    @property
    def manifest(self) -> Manifest:
        """The model's."""
        return self._trainer.manifest

    @property
    def initial(self) -> Params:
        """The tensors it was built with."""
        return self._trainer.initial

    @property
    def device(self) -> torch.device:
        """Where it runs."""
        return self._trainer.device

    @property
    def parameter_names(self) -> tuple[str, ...]:
        """Names of the parameters, in the model's order."""
        return self._trainer.parameter_names

    def seconds(self) -> float:
        """A clock that stands still while other clients' requests are carried out."""
        return time.perf_counter() - self._waited

    def load(self, params: Params) -> None:
        """Make the model that of `params`, which may not change any more."""
        if params.keys() != self._trainer.initial.keys():
            differ = sorted(params.keys() ^ self._trainer.initial.keys())
            raise ValueError(f"names differ from the model's: {differ}")
        self._model, self._bad, self._counts = params, "", {}

    def read(self, names: Sequence[str]) -> Params:
        """The named tensors."""
        return {name: self._model[name] for name in names}

    def read_checked(self) -> Params:
        """All tensors, after training.

        Raises:
            DivergedError: a tensor is not finite; nothing of it may be kept or sent.
        """
        if self._bad:
            raise DivergedError(f"training diverged: {self._bad} holds NaN or infinity; lower learning-rate")
        return self.read(self.manifest.names())

    def state_dict(self) -> Params:
        """A copy of the whole state, integer buffers included."""
        self._trainer.load(self._model)
        state = self._trainer.state_dict()
        for name, count in self._counts.items():
            state[name].fill_(count)
        return state

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
        """As `Trainer.fit`."""
        trained: Trained = self._ask(Fit(self._model, samples, training, generator, gradient_term, loss, only, rule))
        self._model, self._bad, self._counts = trained.params, trained.bad, trained.counts
        if not math.isfinite(trained.mean):
            rate = training.learning_rate
            raise DivergedError(f"training diverged: the loss is {trained.mean}; lower learning-rate={rate:g}")
        return trained.mean

    def evaluate(
        self, samples: Samples, split: str, predictor: Predictor | None = None, metrics: Sequence[Metric] | None = None
    ) -> Scores:
        """As `Trainer.evaluate`."""
        scores: Scores = self._ask(Score(self._model, samples, split, predictor, metrics))
        return scores

    def gradient(
        self, samples: Samples, split: str, count: int, generator: torch.Generator, loss: LossSettings = TASK_LOSS
    ) -> Params:
        """As `Trainer.gradient`."""
        slopes: Params = self._ask(Gradient(self._model, samples, split, count, generator, loss))
        return slopes

    def encode(self, samples: Samples, split: str) -> tuple[Tensor, Tensor]:
        """As `Trainer.encode`."""
        found: tuple[Tensor, Tensor] = self._ask(Encode(self._model, samples, split))
        return found

    def recalibrate(self, samples: Samples, generator: torch.Generator) -> None:
        """As `Trainer.recalibrate`."""
        self._model = self._ask(Recalibrate(self._model, samples, generator))

    def _ask(self, request: Request) -> Any:
        task = getcurrent()
        hub = task.parent if isinstance(task, Task) else None
        assert hub is not None, "a cohort's trainer works within run_together"
        began = time.perf_counter()
        answer: Answer = hub.switch((self._engine, request))
        self._waited += time.perf_counter() - began - answer.seconds
        return answer.result
