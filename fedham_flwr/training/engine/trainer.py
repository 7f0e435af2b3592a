"""Training and gradients of many clients as one computation; results as of `Trainer`, one at a time.

In a block parameters, momenta and buffers are stacked [n, ...], and step s is taken by the m clients that have one: the
first m, since they are sorted by their number of steps, so that nothing is masked that is done. Within a step clients
may have fewer samples than others; the rest is filled up with a weight of 0.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import cast

import torch
from torch import Tensor

from fedham_flwr.core.parameters import Params, finite_rows
from fedham_flwr.training.engine import losses
from fedham_flwr.training.engine.model import StackedModel
from fedham_flwr.training.engine.network import COUNT
from fedham_flwr.training.engine.requests import Fit, Gradient, StackableLoss
from fedham_flwr.training.engine.rows import Means, Plan, Rows, generator, pad, real_samples
from fedham_flwr.training.engine.stepping import Found, Optimised, Ruled
from fedham_flwr.training.losses import LossSettings, balanced
from fedham_flwr.training.modes import trained_of, training_only
from fedham_flwr.training.own_loss import Batch, LossOfClients
from fedham_flwr.training.stepping import again


@dataclass(frozen=True)
class Trained:
    """What became of one client's training.

    Attributes:
        params: all tensors.
        mean: of the loss per sample in the last epoch.
        bad: name of a tensor that holds NaN or infinity; empty if none does.
        counts: integer buffer -> its number.
    """

    params: Params
    mean: float
    bad: str = ""
    counts: Mapping[str, int] = field(default_factory=dict)


def fit(model: StackedModel, requests: Sequence[Fit]) -> list[Trained]:
    """Train each client's model.

    Args:
        model: the network.
        requests: alike (see `Fit.like`), sorted by their number of steps, the largest first.

    Returns:
        What became of each, in their order.
    """
    first, device = requests[0], model.device
    tensors = model.stack([request.model for request in requests])
    names = [name for name, _ in trained_of(model.template, model.manifest, first.only)]
    plan = Plan(requests, model.resident, device)
    slopes = _Slopes(model, requests, names, plan.rows)
    stepping = (Optimised if first.rule is None else Ruled)(requests, tensors, names)
    mean = Means(plan, device)
    model.template.train()
    with training_only(model.template, model.manifest, first.only):
        for x, y, real, sizes in plan.batches():
            each = stepping.step(partial(slopes, Batch(x, y, len(sizes), real), sizes), len(sizes))
            mean.add(each, sizes)
    stepping.finish()
    steps = torch.tensor([request.size() for request in requests], device=device)
    for name in model.counts:
        assert name.endswith(COUNT)
        tensors[name] = torch.where(tensors[name] > 0, steps, 0)
    return _results(model, tensors, mean.values())


def gradient(model: StackedModel, requests: Sequence[Gradient]) -> list[Params]:
    """The gradient of each client's batch at its model, by name.

    Args:
        model: the network.
        requests: alike.
    """
    first, device = requests[0], model.device
    tensors = model.stack([request.model for request in requests])
    rows = Rows.of([r.samples for r in requests], [r.split for r in requests], model.resident, device)
    seeds, chosen = [], []
    for request, index in zip(requests, rows.index, strict=True):
        seeds.append(int(torch.randint(2**62, (), generator=request.generator)))
        chosen.append(index[torch.randperm(len(index), generator=request.generator)[: request.count]])
    sizes = [len(index) for index in chosen]
    real = real_samples(sizes, device)
    x, y = rows.take(pad(chosen, max(sizes)), first.samples.kind)
    draws = [generator(device, seed) for seed in seeds] if model.network.drops else None
    weights = _class_weights(model, requests, rows, first.loss)
    model.template.train()
    leaves = {name: tensors[name].requires_grad_() for name in model.parameters}
    with model.autocast():
        outputs = model.network(tensors, x, real, draws, sizes)
        each = losses.means(outputs, y, len(requests), real, first.loss, weights)
    slopes = torch.autograd.grad(each.sum(), list(leaves.values()), allow_unused=True)
    apart = {n: slope.unbind(0) for n, slope in zip(leaves, slopes, strict=True) if slope is not None}
    return [{name: parts[place] for name, parts in apart.items()} for place in range(len(requests))]


class _Slopes:
    """The losses of a step's clients, and their gradients.

    Args:
        model: the network.
        requests: alike.
        names: of the parameters that are trained.
        rows: the clients' samples.
    """

    def __init__(self, model: StackedModel, requests: Sequence[Fit], names: Sequence[str], rows: Rows) -> None:
        first = requests[0]
        self._model, self._names, self._settings = model, names, first.training.loss
        self._parts = 1 if first.rule is None else first.rule.parts
        self._same = first.rule is not None and first.rule.same_noise
        self._step: tuple[Batch, list[dict[int, Tensor]]] | None = None  # and the draws' states before its parts
        self._own = _loss(requests)
        self._weights = _class_weights(model, requests, rows, self._settings)
        self._draws = (
            [generator(model.device, r.generator.initial_seed()) for r in requests] if model.network.drops else None
        )

    def __call__(self, whole: Batch, sizes: Sequence[int], tensors: Params, number: int) -> Found:
        """Those of a part of a batch, at tensors [m, ...]; of a part without samples 0."""
        batch, m = whole.part(number, self._parts), whole.clients
        if not len(batch.y):
            return torch.zeros(m, device=batch.y.device), [None] * len(self._names)
        sizes = [-(-(size - number) // self._parts) for size in sizes]
        leaves = {name: tensors[name].detach().requires_grad_() for name in self._names}
        given, network = {**tensors, **leaves}, self._model.network
        draws = self._draws and self._draws[:m]
        if self._same and draws:
            if self._step is None or self._step[0] is not whole:
                self._step = whole, [{} for _ in draws]
            for draw, seen in zip(draws, self._step[1], strict=True):
                again(draw, seen, number)
        with self._model.autocast():
            if self._own is not None:
                each = network.apply(self._own, given, (batch,), batch.real, draws, sizes)
            else:
                outputs = network(given, batch.x, batch.real, draws, sizes)
                weights = None if self._weights is None else self._weights[:m]
                each = losses.means(outputs, batch.y, m, batch.real, self._settings, weights)
        found = torch.autograd.grad(each.sum(), list(leaves.values()), allow_unused=True)
        # As the weights lie, which fused optimisers take for granted.
        return each.detach(), [None if slope is None else slope.contiguous() for slope in found]


def _loss(requests: Sequence[Fit]) -> LossOfClients | None:
    """The losses of a method's own as one."""
    losses_of = [cast(StackableLoss, request.loss) for request in requests if request.loss is not None]
    return losses_of[0].stacked(losses_of) if losses_of else None


def _class_weights(
    model: StackedModel, requests: Sequence[Fit | Gradient], rows: Rows, settings: LossSettings
) -> Tensor | None:
    """The weights of each client's classes: float32 [n, K]; None where they are not weighed."""
    if settings.class_weights != "balanced":
        return None
    kind = requests[0].samples.kind
    x, _ = rows.take(rows.index[0][:1], kind)
    classes = model.outputs(model.stack([requests[0].model]), x).shape[-1]
    return torch.stack([balanced(rows.take(index, kind)[1], classes) for index in rows.index])


def _results(model: StackedModel, tensors: Params, means: Sequence[float]) -> list[Trained]:
    counted = {name: tensors[name].tolist() for name in model.counts}
    names = model.manifest.names()
    tensors = {name: tensors[name].detach().cpu() for name in names}
    bad = [""] * len(means)
    for name in reversed(names):
        good = finite_rows(tensors[name])
        if not bool(good.all()):
            for place in (~good).nonzero().flatten().tolist():
                bad[place] = name
    rows = zip(*(tensors[name].unbind(0) for name in names), strict=True)
    found = []
    for place, (row, mean) in enumerate(zip(rows, means, strict=True)):
        counts = {name: given[place] for name, given in counted.items()}
        found.append(Trained(dict(zip(names, row, strict=True)), mean, bad[place], counts))
    return found
