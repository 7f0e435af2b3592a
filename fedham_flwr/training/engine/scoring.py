"""Scores of many clients at once, and what their networks see of samples."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from fedham_flwr.core.parameters import Params
from fedham_flwr.core.trees import same
from fedham_flwr.training.engine import losses
from fedham_flwr.training.engine.model import StackedModel
from fedham_flwr.training.engine.requests import Encode, Score
from fedham_flwr.training.engine.rows import Rows, pad, real_samples
from fedham_flwr.training.measurement import MOST_NATS, Measurement, Scores
from fedham_flwr.training.metrics import Metric
from fedham_flwr.training.trainer import EVALUATION_BATCH

ROWS = 8192
"""Samples of one evaluation step of a block: more leave the processor's caches."""


@torch.no_grad()
def score(model: StackedModel, requests: Sequence[Score]) -> list[Scores]:
    """The scores of each client's model on its split.

    Args:
        model: the network.
        requests: alike, sorted by their number of samples, the largest first.
    """
    rows = Rows.of([r.samples for r in requests], [r.split for r in requests], model.resident, model.device)
    sums = _Sums(len(requests), model.device)
    measured = [] if requests[0].streamed else [Measurement(request.metrics, model.device) for request in requests]
    for y, owners, outputs in _outputs(requests, rows, model, model.outputs):
        if not measured:
            sums.add(outputs, y, owners)
            continue
        lengths = torch.bincount(owners, minlength=len(requests)).tolist()
        parts = zip(torch.split(outputs, lengths), torch.split(y, lengths), measured, strict=True)
        for output, target, measurement in parts:
            if len(target):
                measurement.add(output, target)
    if measured:
        return [measurement.scores() for measurement in measured]
    return [_streamed(r.metrics or (), *told) for r, told in zip(requests, sums.rows(), strict=True)]


@torch.no_grad()
def encode(model: StackedModel, requests: Sequence[Encode]) -> list[tuple[Tensor, Tensor]]:
    """What each client's last linear layer sees of its split, and the targets: see `Trainer.encode`.

    Args:
        model: the network.
        requests: alike, sorted by their number of samples, the largest first.
    """
    rows = Rows.of([r.samples for r in requests], [r.split for r in requests], model.resident, model.device)
    features: list[list[Tensor]] = [[] for _ in requests]
    targets: list[list[Tensor]] = [[] for _ in requests]
    for y, owners, seen in _outputs(requests, rows, model, model.features):
        lengths = torch.bincount(owners, minlength=len(requests)).tolist()
        for place, (part, target) in enumerate(zip(torch.split(seen, lengths), torch.split(y, lengths), strict=True)):
            features[place].append(part.float().flatten(0, -2))
            targets[place].append(target.flatten())
    return [(torch.cat(seen), torch.cat(target)) for seen, target in zip(features, targets, strict=True)]


def _outputs(
    requests: Sequence[Score] | Sequence[Encode],
    rows: Rows,
    model: StackedModel,
    run: Callable[[Params, Tensor], Tensor],
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Targets, owners and what the model gives, part by part; owners ascend in each part."""
    first, kind = requests[0].model, requests[0].samples.kind
    if all(r.model is first or all(same(r.model[n], t) for n, t in first.items()) for r in requests):
        tensors = model.stack([first])  # one model for all, so that clients need not be told apart
        lengths = torch.tensor([len(index) for index in rows.index])
        owners = torch.repeat_interleave(torch.arange(len(lengths)), lengths)
        numbers = torch.split(torch.cat(rows.index), EVALUATION_BATCH)
        for some, owned in zip(numbers, torch.split(owners, EVALUATION_BATCH), strict=True):
            x, y = rows.take(some, kind)
            yield y, owned.to(model.device), run(tensors, x)
        return
    tensors = model.stack([request.model for request in requests])
    sizes = [len(index) for index in rows.index]
    width = min(max(sizes), EVALUATION_BATCH, max(1, ROWS // len(requests)))
    for start in range(0, max(sizes), width):
        left = [min(size - start, width) for size in sizes if size > start]
        m, widest = len(left), max(left)
        x, y = rows.take(pad([index[start : start + width] for index in rows.index[:m]], widest), kind)
        outputs = run({name: tensor[:m] for name, tensor in tensors.items()}, x)
        owners = torch.repeat_interleave(torch.arange(m), widest).to(model.device)
        real = real_samples(left, model.device)
        if real is not None:
            kept = real.flatten().nonzero().squeeze(1)
            y, outputs, owners = y[kept], outputs[kept], owners[kept]
        yield y, owners, outputs


class _Sums:
    """Hits, losses and numbers of predictions of several clients."""

    def __init__(self, clients: int, device: torch.device) -> None:
        self._clients = clients
        self._hits, self._loss, self._terms, self._n = (
            torch.zeros(clients, dtype=torch.float64, device=device) for _ in range(4)
        )

    def add(self, outputs: Tensor, targets: Tensor, owners: Tensor) -> None:
        """Take predictions of classes, or outputs of which only the loss counts."""
        each = losses.terms(outputs.float(), targets)
        self._loss += losses.sums(each, owners, self._clients)
        self._terms += losses.sums(torch.ones_like(each), owners, self._clients)
        if targets.dtype == torch.int64:
            hits = (outputs.argmax(-1) == targets).view(len(targets), -1)
            self._hits += losses.sums(hits, owners, self._clients)
            self._n += losses.sums(torch.ones_like(hits), owners, self._clients)
        else:
            self._n += losses.sums(torch.ones(len(targets), 1, device=each.device), owners, self._clients)

    def rows(self) -> Iterator[tuple[float, float, int]]:
        """Of each client: hits, mean loss, number of predictions."""
        told = torch.stack([self._hits, self._loss / self._terms, self._n]).cpu().tolist()
        for hits, loss, n in zip(*told, strict=True):
            yield hits, loss, int(n)


def _streamed(metrics: Sequence[Metric], hits: float, loss: float, n: int) -> Scores:
    """As `Measurement.scores`."""
    values: dict[str, float] = {}
    for metric in metrics:
        if metric.name == "accuracy":
            values["accuracy"] = hits / n
        elif metric.name == "perplexity":
            values |= {"loss": loss, "perplexity": math.exp(min(loss, MOST_NATS))}
    values.setdefault("loss", loss)
    return Scores(values, n)
