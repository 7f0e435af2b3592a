"""What takes a step of many clients' training: the optimiser, or a rule of a method's own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import cast

import torch
from torch import Tensor

from fedham_flwr.core.parameters import Params
from fedham_flwr.training.engine.optim import StackedOptimizer
from fedham_flwr.training.engine.requests import Fit, StackableTerm
from fedham_flwr.training.local import LocalTraining
from fedham_flwr.training.step_rules import StepRule, stepped
from fedham_flwr.training.stepping import GradientTerm, show

Found = tuple[Tensor, list[Tensor | None]]
"""The mean loss of each of m clients, and the gradients of their parameters [m, ...]."""
Backward = Callable[[Params, int], Found]
"""Of all tensors [m, ...] and the number of a part of the batch."""


class Optimised:
    """Steps of the optimiser.

    Args:
        requests: alike.
        tensors: all tensors, stacked [n, ...], to be changed in place.
        names: of the parameters that are trained.
    """

    def __init__(self, requests: Sequence[Fit], tensors: Params, names: Sequence[str]) -> None:
        self._tensors, self._names = tensors, names
        self._training, self._term = requests[0].training, _term(requests)
        self._optimizer = StackedOptimizer([tensors[name] for name in names], self._training)

    def step(self, backward: Backward, m: int) -> Tensor:
        """One step of the first m clients; gives the mean loss of each."""
        given = {name: tensor[:m] for name, tensor in self._tensors.items()}
        each, slopes = backward(given, 0)
        with torch.no_grad():
            if self._term is not None:
                show(self._term, {name: given[name] for name in self._names})
                for name, slope in zip(self._names, slopes, strict=True):
                    if slope is not None:
                        self._term(name, given[name], slope)
            _shorten([slope for slope in slopes if slope is not None], self._training)
            self._optimizer.step(slopes, m)
        return each

    def finish(self) -> None:
        """All steps are done."""


class Ruled:
    """Steps of a method's own rule; arguments as of `Optimised`."""

    def __init__(self, requests: Sequence[Fit], tensors: Params, names: Sequence[str]) -> None:
        self._tensors, self._names = tensors, names
        self._rules = [cast(StepRule, request.rule) for request in requests]
        self._own, self._decay = self._rules[0].stack(self._rules), requests[0].training.weight_decay

    def step(self, backward: Backward, m: int) -> Tensor:
        """One step of the first m clients; gives the mean loss of each where it took its first gradient."""
        rest = {name: tensor[:m] for name, tensor in self._tensors.items() if name not in self._names}
        here = {name: self._tensors[name][:m] for name in self._names}
        means: list[Tensor] = []

        def slopes(at: Params, number: int) -> Params:
            each, found = backward({**rest, **at}, number)
            means.append(each)
            return {
                name: self._decay * at[name] + (0.0 if slope is None else slope)
                for name, slope in zip(self._names, found, strict=True)
            }

        own = {name: tensor[:m] for name, tensor in self._own.items()}
        after = stepped(self._rules[0], {name: tensor.clone() for name, tensor in here.items()}, own, slopes)
        for name, tensor in here.items():
            tensor.copy_(after[name])
        return means[0]

    def finish(self) -> None:
        """Give each client's rule what it has now."""
        for place, rule in enumerate(self._rules):
            rule.own = {name: tensor[place] for name, tensor in self._own.items()}


def _term(requests: Sequence[Fit]) -> GradientTerm | None:
    """The terms of a method's own as one."""
    terms = [cast(StackableTerm, request.gradient_term) for request in requests if request.gradient_term is not None]
    return terms[0].stacked(terms) if terms else None


def _shorten(slopes: Sequence[Tensor], training: LocalTraining) -> None:
    """Make each client's gradient no longer than `max-grad-norm`, in place, as torch does for one."""
    if not training.max_grad_norm:
        return
    norms = torch.stack([slope.flatten(1).square().sum(1) for slope in slopes]).sum(0).sqrt()
    scale = (training.max_grad_norm / (norms + 1e-6)).clamp(max=1.0)
    for slope in slopes:
        slope.mul_(scale.view(-1, *[1] * (slope.dim() - 1)))
