"""Carries out the requests of many client halves together where they are alike, and one at a time where not."""

from __future__ import annotations

import logging
import time
from collections.abc import Hashable, Sequence
from typing import Any, NamedTuple

from torch import Tensor, nn

from fedham_flwr.core import parameters
from fedham_flwr.core.errors import first_line
from fedham_flwr.core.trees import num_bytes
from fedham_flwr.training.engine import memory
from fedham_flwr.training.engine.model import StackedModel
from fedham_flwr.training.engine.network import StackedNetwork
from fedham_flwr.training.engine.recalibrating import recalibrate
from fedham_flwr.training.engine.requests import Encode, Fit, Gradient, Recalibrate, Request, Score
from fedham_flwr.training.engine.scoring import encode, score
from fedham_flwr.training.engine.trainer import Trained, fit, gradient
from fedham_flwr.training.trainer import Trainer

log = logging.getLogger("fedham_flwr")

LARGE = 1_000_000
"""Multiply-adds of a sample's forward pass from which one client alone fills the processor."""


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
        batches: such as the network may be given, on its device; only shape and type count.

    Attributes:
        trainer: as given.
        network: the network for many clients at once.
        alone: how many requests were carried out one at a time, by kind.
        together: how many were carried out with others.
    """

    def __init__(self, trainer: Trainer, model: nn.Module, batches: Sequence[Tensor]) -> None:
        self.trainer = trainer
        self.network = StackedNetwork(model, batches, LARGE)
        self._model = StackedModel(model, self.network, trainer.manifest, trainer.device, trainer.bf16)
        self._block = memory.block(num_bytes(parameters.floating_tensors(model)))
        self.alone: dict[str, int] = {}
        self.together = 0
        self._why = ""  # what kept alike requests apart first

    def forget(self) -> None:
        """Count from 0 again."""
        self.alone, self.together, self._why = {}, 0, ""

    def told(self) -> dict[str, object]:
        """How the network runs for many clients, and how many requests were carried out together and alone."""
        found: dict[str, object] = {"network": self.network.way, "together": self.together, "alone": dict(self.alone)}
        why = self.network.why or self._why
        return {**found, "why-alone": why} if why else found

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
        if self.network.way == "vmap":
            if isinstance(request, Encode | Recalibrate) or (isinstance(request, Fit) and request.loss is not None):
                return False
            return isinstance(request, Score) or (not self.network.drops and self.network.masks)
        return True

    def _carry_out(self, requests: Sequence[Request]) -> list[Answer]:
        if len(requests) == 1:
            return [self._one(requests[0])]
        began = time.perf_counter()
        states = [r.generator.get_state() if isinstance(r, Gradient) else None for r in requests]
        try:
            found = self._together(requests)
        except Exception as error:  # one client's fault, of any kind, is found and named alone
            for request, state in zip(requests, states, strict=True):
                if isinstance(request, Fit | Recalibrate):
                    request.generator.manual_seed(request.generator.initial_seed())
                elif isinstance(request, Gradient) and state is not None:
                    request.generator.set_state(state)
            if memory.ran_out(error):
                return self._halve(requests)
            self._why = self._why or first_line(error)
            return [self._one(request) for request in requests]
        self.together += len(requests)
        share = (time.perf_counter() - began) / len(requests)
        return [Answer(result, None, share) for result in found]

    def _together(self, requests: Sequence[Request]) -> Sequence[Any]:
        """What came of requests that are alike."""
        if isinstance(requests[0], Fit):
            return fit(self._model, [r for r in requests if isinstance(r, Fit)])
        if isinstance(requests[0], Score):
            return score(self._model, [r for r in requests if isinstance(r, Score)])
        if isinstance(requests[0], Encode):
            return encode(self._model, [r for r in requests if isinstance(r, Encode)])
        if isinstance(requests[0], Recalibrate):
            return recalibrate(self._model, [r for r in requests if isinstance(r, Recalibrate)])
        return gradient(self._model, [r for r in requests if isinstance(r, Gradient)])

    def _halve(self, requests: Sequence[Request]) -> list[Answer]:
        """Carry out in two blocks what does not fit into memory as one, and make no larger ones from now on."""
        memory.release(self.trainer.device)
        half = -(-len(requests) // 2)
        if half < self._block:
            self._block = half
            log.warning("%s: %d clients at once do not fit, and %d are tried", memory.FULL, len(requests), half)
        return self._carry_out(requests[:half]) + self._carry_out(requests[half:])

    def _one(self, request: Request) -> Answer:
        began = time.perf_counter()
        kind = type(request).__name__.lower()
        self.alone[kind] = self.alone.get(kind, 0) + 1
        try:
            result = self._alone(request)
        except Exception as error:  # it is the client's own, and raised there
            full = memory.ran_out(error)
            if full:
                memory.release(self.trainer.device)
            return Answer(None, memory.too_large(self.trainer.device) if full else error, time.perf_counter() - began)
        return Answer(result, None, time.perf_counter() - began)

    def _alone(self, request: Request) -> Any:
        trainer = self.trainer
        trainer.load(request.model)
        if isinstance(request, Score):
            return trainer.evaluate(request.samples, request.split, request.predictor, request.metrics)
        if isinstance(request, Encode):
            return trainer.encode(request.samples, request.split)
        if isinstance(request, Gradient):
            slopes = trainer.gradient(request.samples, request.split, request.count, request.generator, request.loss)
            return {name: slope.clone() for name, slope in slopes.items()}
        if isinstance(request, Recalibrate):
            trainer.recalibrate(request.samples, request.generator)
            return trainer.read(trainer.manifest.names())
        mean = trainer.fit(
            request.samples,
            request.training,
            request.generator,
            request.gradient_term,
            request.loss,
            request.only,
            request.rule,
        )
        params = trainer.read(trainer.manifest.names())
        bad = next((name for name, tensor in params.items() if not parameters.all_finite(tensor)), "")
        state = trainer.state_dict() if self._model.counts else {}
        return Trained(params, mean, bad, {name: int(state[name]) for name in self._model.counts})
