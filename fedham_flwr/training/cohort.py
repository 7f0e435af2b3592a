"""A cohort as one program: many client halves run side by side, and what they ask for is carried out together.

Each client half runs in a greenlet, as it is written for one client, until it asks its trainer to fit, for a gradient
or for scores. When all have asked, requests that are alike are carried out as one computation and each half goes on
with its own result. A half does not know: its trainer has the face of `Trainer`.

What cannot be stacked runs one at a time, by `Trainer`: a network that failed the trial (see `folded`), or whose layers
are so large that nothing is gained; a loss, predictor, optimiser or term of the gradient of somebody's own.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import torch
from greenlet import getcurrent, greenlet
from torch import Tensor, nn

from fedham_flwr.core import parameters
from fedham_flwr.core.errors import UserError
from fedham_flwr.core.parameters import Manifest, Params
from fedham_flwr.training.folded import StackedNetwork
from fedham_flwr.training.local import LocalTraining, Samples
from fedham_flwr.training.losses import TASK_LOSS, LossSettings
from fedham_flwr.training.metrics import Metric, Scores
from fedham_flwr.training.requests import Fit, Gradient, Request, Score
from fedham_flwr.training.stacked import StackedTrainer, Trained
from fedham_flwr.training.trainer import GradientTerm, Loss, Predictor, Trainer

log = logging.getLogger("fedham_flwr")

AT_ONCE = 1024
"""Client halves that are under way at the same time."""
BLOCK_BYTES = 8 * 2**20
"""Of the parameters, momenta and gradients of a block: more leave the processor's caches."""
MOST, LEAST = 512, 8
"""Clients of a block."""
LARGE = 4_000_000
"""Multiply-adds of a sample's forward pass from which one client alone fills the processor."""

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


class Answer(NamedTuple):
    """What came of a request.

    Attributes:
        result: what was asked for.
        error: why there is none.
        seconds: its share of the time that it took with others.
    """

    result: Any = None
    error: BaseException | None = None
    seconds: float = 0.0


class Engine:
    """Carries out the requests of client halves with the same network together.

    Args:
        trainer: the one for what cannot be stacked.
        model: its network.
        inputs: a batch such as the network is given, on its device; only its shape and type count.

    Attributes:
        trainer: as given.
        network: the network for many clients at once.
        alone: how many requests were carried out one at a time, by kind.
        together: how many were carried out with others.
    """

    def __init__(self, trainer: Trainer, model: nn.Module, inputs: Tensor) -> None:
        self.trainer = trainer
        self.network = StackedNetwork(model, inputs, LARGE)
        self._stacked = StackedTrainer(model, self.network, trainer.manifest, trainer.device, trainer.bf16)
        size = sum(p.numel() * p.element_size() for p in model.parameters())
        self._block = max(LEAST, min(MOST, BLOCK_BYTES // max(1, 3 * size)))
        self.alone: dict[str, int] = {}
        self.together = 0

    def answer(self, requests: Sequence[Request]) -> list[Answer]:
        """For each request its result, or why there is none."""
        alike: dict[Hashable, list[int]] = {}
        for place, request in enumerate(requests):
            like = request.like() if self._stackable(request) else None
            alike.setdefault(("alone", place) if like is None else like, []).append(place)
        answers = [Answer()] * len(requests)
        for places in alike.values():
            places.sort(key=lambda place: -requests[place].size())
            for start in range(0, len(places), self._block):
                block = places[start : start + self._block]
                for place, answer in zip(block, self._carry_out([requests[p] for p in block]), strict=True):
                    answers[place] = answer
        return answers

    def _stackable(self, request: Request) -> bool:
        if self.network.way == "none" or not request.size():
            return False
        if self.network.way == "vmap" and not isinstance(request, Score):
            return not self.network.drops and self.network.masks
        return True

    def _carry_out(self, requests: Sequence[Request]) -> list[Answer]:
        if len(requests) == 1:
            return [self._one(requests[0])]
        began = time.perf_counter()
        found: Sequence[Any]
        try:
            if isinstance(requests[0], Fit):
                found = self._stacked.fit(requests)  # type: ignore[arg-type]
            elif isinstance(requests[0], Score):
                found = self._stacked.score(requests)  # type: ignore[arg-type]
            else:
                found = self._stacked.gradient(requests)  # type: ignore[arg-type]
        except (RuntimeError, ValueError, UserError) as error:  # one client's fault is found, and named, alone
            log.debug("%d requests are carried out one at a time: %s", len(requests), error)
            for request in requests:
                if isinstance(request, Fit):
                    request.generator.manual_seed(request.generator.initial_seed())
            return [self._one(request) for request in requests]
        self.together += len(requests)
        share = (time.perf_counter() - began) / len(requests)
        return [Answer(result, None, share) for result in found]

    def _one(self, request: Request) -> Answer:
        began = time.perf_counter()
        kind = type(request).__name__.lower()
        self.alone[kind] = self.alone.get(kind, 0) + 1
        try:
            result = self._alone(request)
        except Exception as error:  # it is the client's own, and raised there
            return Answer(None, error, time.perf_counter() - began)
        return Answer(result, None, time.perf_counter() - began)

    def _alone(self, request: Request) -> Any:
        trainer = self.trainer
        trainer.load(request.model)
        if isinstance(request, Score):
            return trainer.evaluate(request.samples, request.split, request.predictor, request.metrics)
        if isinstance(request, Gradient):
            slopes = trainer.gradient(request.samples, request.split, request.count, request.generator, request.loss)
            return {name: slope.clone() for name, slope in slopes.items()}
        mean = trainer.fit(
            request.samples, request.training, request.generator, request.gradient_term, request.loss, request.only
        )
        params = trainer.read(trainer.manifest.names())
        bad = next((name for name, tensor in params.items() if not parameters.all_finite(tensor)), "")
        return Trained(params, mean, bad, trainer.counts())


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
            UserError: a tensor is not finite; nothing of it may be kept or sent.
        """
        if self._bad:
            raise UserError(f"training diverged: {self._bad} holds NaN or infinity; lower learning-rate")
        return self.read(self.manifest.names())

    def state_dict(self) -> Params:
        """A copy of the whole state, integer buffers included."""
        return self._engine.trainer.state_of(self._model, self._counts)

    def fit(
        self,
        samples: Samples,
        training: LocalTraining,
        generator: torch.Generator,
        gradient_term: GradientTerm | None = None,
        loss: Loss | None = None,
        only: Collection[str] | None = None,
    ) -> float:
        """As `Trainer.fit`."""
        trained: Trained = self._ask(Fit(self._model, samples, training, generator, gradient_term, loss, only))
        self._model, self._bad, self._counts = trained.params, trained.bad, trained.counts
        if not math.isfinite(trained.mean):
            rate = training.learning_rate
            raise UserError(f"training diverged: the loss is {trained.mean}; lower learning-rate={rate:g}")
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
        """As `Trainer.encode`, at once."""
        self._trainer.load(self._model)
        return self._trainer.encode(samples, split)

    def _ask(self, request: Request) -> Any:
        task = getcurrent()
        hub = task.parent if isinstance(task, Task) else None
        assert hub is not None, "a cohort's trainer works within run_together"
        began = time.perf_counter()
        answer: Answer = hub.switch((self._engine, request))
        self._waited += time.perf_counter() - began - answer.seconds
        return answer.result
