"""What takes a step of one client's training: the optimiser, or a rule of a method's own."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from fedham_flwr.core.parameters import Params
from fedham_flwr.training import optim
from fedham_flwr.training.local import LocalTraining
from fedham_flwr.training.step_rules import StepRule, stepped

GradientTerm = Callable[[str, Tensor, Tensor], None]
"""Called after each backward pass for each trained parameter: its name, value and gradient, to change in place."""
Backward = Callable[[int], Tensor]
"""Leaves the gradients of a part of the batch in the parameters, and gives its mean loss."""


@runtime_checkable
class LooksAtAll(Protocol):
    """A term of the gradient that depends on all parameters at once, such as their length."""

    def look(self, params: Mapping[str, Tensor]) -> None:
        """Take note of a step's parameters, before the term is asked for any of them: of one client, or [m, ...]."""
        ...


def show(term: GradientTerm | None, params: Mapping[str, Tensor]) -> None:
    """Show a term all trained parameters, if it looks at them together."""
    if isinstance(term, LooksAtAll):
        term.look(params)


def stepping(
    trained: Sequence[tuple[str, nn.Parameter]],
    training: LocalTraining,
    gradient_term: GradientTerm | None,
    rule: StepRule | None,
) -> Callable[[Backward], Tensor]:
    """What takes a step, and gives its mean loss.

    Args:
        trained: names and parameters, to be changed in place.
        training: the optimiser and its settings.
        gradient_term: a method's own term of the gradient.
        rule: a method's own step, in place of the optimiser's.
    """
    params = [param for _, param in trained]
    if rule is not None:
        return Rules(rule, [name for name, _ in trained], params, training.weight_decay).step
    optimizer = optim.make(params, training)

    def step(backward: Backward) -> Tensor:
        mean = backward(0)
        if gradient_term is not None:
            with torch.no_grad():
                show(gradient_term, dict(trained))
                for name, param in trained:
                    if param.grad is not None:
                        gradient_term(name, param, param.grad)
        if training.max_grad_norm:
            nn.utils.clip_grad_norm_(params, training.max_grad_norm)
        optimizer.step()
        return mean

    return step


class Rules:
    """Carries out the steps of one client's rule on a model.

    Args:
        rule: the client's.
        names: of the parameters, in the model's order.
        params: the model's, to be changed in place.
        weight_decay: that is added to the gradients.
    """

    def __init__(
        self, rule: StepRule, names: Sequence[str], params: Sequence[nn.Parameter], weight_decay: float
    ) -> None:
        self._rule, self._decay = rule, weight_decay
        self._named = dict(zip(names, params, strict=True))
        self._own = {name: value[None] for name, value in rule.own.items()}

    def step(self, backward: Backward) -> Tensor:
        """One step; gives the mean loss of its first gradient."""
        losses: list[Tensor] = []
        noise = noise_of(next(iter(self._named.values())).device) if self._rule.same_noise else None
        seen: dict[int, Tensor] = {}

        def slopes(at: Params, part: int) -> Params:
            self._write(at)
            if noise is not None:
                again(noise, seen, part)
            losses.append(backward(part))
            return {
                name: self._decay * at[name] + (0.0 if param.grad is None else param.grad[None])
                for name, param in self._named.items()
            }

        with torch.no_grad():
            before = {name: param.detach().clone()[None] for name, param in self._named.items()}
        self._write(stepped(self._rule, before, self._own, slopes))
        return losses[0]

    @torch.no_grad()
    def _write(self, params: Params) -> None:
        for name, param in self._named.items():
            param.copy_(params[name][0])


def noise_of(device: torch.device) -> torch.Generator:
    """What dropout draws from on a device."""
    if device.type != "cuda":
        return torch.default_generator
    place = torch.cuda.current_device() if device.index is None else device.index
    return torch.cuda.default_generators[place]


def again(noise: torch.Generator, seen: dict[int, Tensor], part: int) -> None:
    """Let a generator draw for a part of a step what it drew for it before.

    Args:
        noise: the generator.
        seen: number of a part -> its state before that part; filled.
        part: the number.
    """
    if part in seen:
        noise.set_state(seen[part])
    else:
        seen[part] = noise.get_state()
