"""Training, gradients and scores of many clients as one computation; results as of `Trainer`, one at a time.

Clients are sorted by their steps and cut into blocks. In a block parameters, momenta and buffers are stacked [n, ...],
and step s is taken by the m clients that have one: the first m, since they are sorted, so that nothing is masked that
is done. Within a step clients may have fewer samples than others; the rest is filled up with a weight of 0. The order
of samples, augmentation and dropout are drawn for each client from its own stream.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from fedham_flwr.core.parameters import Manifest, Params, finite_rows
from fedham_flwr.data.batches import inputs_and_targets
from fedham_flwr.training import augment, losses, stacked_loss
from fedham_flwr.training.folded import COUNT, StackedNetwork
from fedham_flwr.training.local import LocalTraining, Samples, steps
from fedham_flwr.training.metrics import MOST_NATS, Measurement, Metric, Scores
from fedham_flwr.training.modes import training_only
from fedham_flwr.training.requests import Fit, Gradient, Score, StackableTerm
from fedham_flwr.training.stacked_optim import StackedOptimizer
from fedham_flwr.training.trainer import EVALUATION_BATCH

ROWS = 4096
"""Samples of one evaluation step of a block: more leave the processor's caches."""


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


@dataclass
class Rows:
    """The samples of several clients as one tensor, and where each client's are.

    Attributes:
        features: as they are stored.
        labels: as they are stored.
        index: of each client, int64, the numbers of its samples in these.
    """

    features: Tensor
    labels: Tensor
    index: list[Tensor] = field(default_factory=list)

    @classmethod
    def of(cls, several: Sequence[Samples], split: Sequence[str], device: torch.device) -> Rows:
        """Those of one split of each client: where they are if all are in one place, else copied."""
        first = several[0]
        places = {(s.features.data_ptr(), s.labels.data_ptr(), len(s.features)) for s in several}
        if len(places) == 1 and device.type == "cpu":
            return cls(first.features, first.labels, [s.splits[which] for s, which in zip(several, split, strict=True)])
        picked = [s.splits[which] for s, which in zip(several, split, strict=True)]
        features = torch.cat([s.features[index] for s, index in zip(several, picked, strict=True)]).to(device)
        labels = torch.cat([s.labels[index] for s, index in zip(several, picked, strict=True)]).to(device)
        sizes, start, index = [len(part) for part in picked], 0, []
        for size in sizes:
            index.append(torch.arange(start, start + size))
            start += size
        return cls(features, labels, index)

    def take(self, numbers: Tensor, kind: str) -> tuple[Tensor, Tensor]:
        """Inputs and targets of samples by their numbers, int64 of any shape, as one folded batch."""
        flat = numbers.flatten().to(self.features.device)
        return inputs_and_targets(self.features.index_select(0, flat), self.labels.index_select(0, flat), kind)  # type: ignore[arg-type]


class StackedTrainer:
    """Carries out the requests of many clients together.

    Args:
        model: the network, on its device; its weights are not used.
        network: the same for many clients.
        manifest: the model's.
        device: where it runs.
        bf16: whether under autocast to bfloat16.
    """

    def __init__(
        self, model: nn.Module, network: StackedNetwork, manifest: Manifest, device: torch.device, bf16: bool
    ) -> None:
        self._model, self._network, self._manifest = model, network, manifest
        self._device, self._bf16 = device, bf16
        self._parameters = tuple(name for name, _ in model.named_parameters())
        self._counts = tuple(name for name, b in model.named_buffers() if not b.is_floating_point())

    # ---- training ----------------------------------------------------------------------------------------------------

    def fit(self, requests: Sequence[Fit]) -> list[Trained]:
        """Train each client's model.

        Args:
            requests: alike (see `Fit.like`), sorted by their number of steps, the largest first.

        Returns:
            What became of each, in their order.
        """
        first = requests[0]
        tensors = self._stack([request.model for request in requests])
        names = [name for name in self._parameters if first.only is None or name in first.only]
        plan = _Plan(requests, self._device)
        optimizer = StackedOptimizer([tensors[name] for name in names], first.training)
        term = None
        if isinstance(first.gradient_term, StackableTerm):
            term = first.gradient_term.stacked([r.gradient_term for r in requests])  # type: ignore[misc]
        weights, mean = self._class_weights(requests, plan.rows), _Means(plan, self._device)
        draws = None
        if self._network.drops:
            draws = [_generator(self._device, request.generator.initial_seed()) for request in requests]
        self._model.train()
        with training_only(self._model, self._manifest, first.only):
            for x, y, real, sizes in plan.batches():
                m = len(sizes)
                leaves = {name: tensors[name][:m].detach().requires_grad_() for name in names}
                given = {name: tensor[:m] for name, tensor in tensors.items()} | leaves
                with self._autocast():
                    outputs = self._network(given, x, real, draws and draws[:m], sizes)
                    each = stacked_loss.means(
                        outputs, y, m, real, first.training.loss, None if weights is None else weights[:m]
                    )
                found = torch.autograd.grad(each.sum(), list(leaves.values()), allow_unused=True)
                # As the weights lie, which fused optimisers take for granted.
                slopes = [None if slope is None else slope.contiguous() for slope in found]
                with torch.no_grad():
                    self._finish(leaves, slopes, term, first.training, m)
                    optimizer.step(slopes, m)
                    mean.add(each.detach(), sizes)
        self._count(tensors, [request.size() for request in requests])
        return self._results(requests, tensors, mean.values())

    def _finish(
        self, leaves: Params, slopes: Sequence[Tensor | None], term: object, training: LocalTraining, m: int
    ) -> None:
        """Add a method's own term to the gradients, and shorten those that are too long, client by client."""
        if term is not None:
            for (name, leaf), slope in zip(leaves.items(), slopes, strict=True):
                if slope is not None:
                    term(name, leaf, slope)  # type: ignore[operator]
        if training.max_grad_norm:
            there = [slope for slope in slopes if slope is not None]
            norms = torch.stack([slope.flatten(1).square().sum(1) for slope in there]).sum(0).sqrt()
            scale = (training.max_grad_norm / (norms + 1e-6)).clamp(max=1.0)
            for slope in there:
                slope.mul_(scale.view(m, *[1] * (slope.dim() - 1)))

    def _class_weights(self, requests: Sequence[Fit | Gradient], rows: Rows) -> Tensor | None:
        settings = requests[0].training.loss if isinstance(requests[0], Fit) else requests[0].loss
        if settings.class_weights != "balanced":
            return None
        kind, found = requests[0].samples.kind, []
        classes = self._outputs(requests[0].model, rows, kind)
        for index in rows.index:
            _, targets = rows.take(index, kind)
            found.append(losses.balanced(targets, classes))
        return torch.stack(found)

    def _outputs(self, model: Params, rows: Rows, kind: str) -> int:
        x, _ = rows.take(rows.index[0][:1], kind)
        stacked = self._stack([model])
        self._model.eval()
        with torch.no_grad():
            return int(self._network(stacked, x).shape[-1])

    # ---- gradients ---------------------------------------------------------------------------------------------------

    def gradient(self, requests: Sequence[Gradient]) -> list[Params]:
        """The gradient of each client's batch at its model, by name.

        Args:
            requests: alike.
        """
        first = requests[0]
        tensors = self._stack([request.model for request in requests])
        rows = Rows.of([r.samples for r in requests], [r.split for r in requests], self._device)
        seeds, chosen = [], []
        for request, index in zip(requests, rows.index, strict=True):
            seeds.append(int(torch.randint(2**62, (), generator=request.generator)))
            chosen.append(index[torch.randperm(len(index), generator=request.generator)[: request.count]])
        sizes = [len(index) for index in chosen]
        real = _real(sizes, self._device)
        x, y = rows.take(stacked_loss.pad(chosen, max(sizes)), first.samples.kind)
        draws = [_generator(self._device, seed) for seed in seeds] if self._network.drops else None
        weights = self._class_weights(requests, rows)
        self._model.train()
        leaves = {name: tensors[name].requires_grad_() for name in self._parameters}
        with self._autocast():
            outputs = self._network(tensors, x, real, draws, sizes)
            each = stacked_loss.means(outputs, y, len(requests), real, first.loss, weights)
        slopes = torch.autograd.grad(each.sum(), list(leaves.values()), allow_unused=True)
        apart = {n: slope.unbind(0) for n, slope in zip(leaves, slopes, strict=True) if slope is not None}
        return [{name: parts[place] for name, parts in apart.items()} for place in range(len(requests))]

    # ---- scores ------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def score(self, requests: Sequence[Score]) -> list[Scores]:
        """The scores of each client's model on its split.

        Args:
            requests: alike, sorted by their number of samples, the largest first.
        """
        rows = Rows.of([r.samples for r in requests], [r.split for r in requests], self._device)
        kind, streamed = requests[0].samples.kind, requests[0].streamed
        sums = _Sums(len(requests), self._device)
        measured = [] if streamed else [Measurement(request.metrics, self._device) for request in requests]
        self._model.eval()
        for x, y, owners, outputs in self._outputs_of(requests, rows, kind):
            del x
            if streamed:
                sums.add(outputs, y, owners)
                continue
            lengths = torch.bincount(owners, minlength=len(requests)).tolist()
            parts = zip(torch.split(outputs, lengths), torch.split(y, lengths), measured, strict=True)
            for output, target, measurement in parts:
                if len(target):
                    measurement.add(output, target)
        if streamed:
            return [
                _streamed(request.metrics or (), *told) for request, told in zip(requests, sums.rows(), strict=True)
            ]
        return [measurement.scores() for measurement in measured]

    def _outputs_of(
        self, requests: Sequence[Score], rows: Rows, kind: str
    ) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
        """Inputs, targets, owners and outputs, part by part; owners ascend in each part."""
        model = requests[0].model
        same = all(
            request.model is model or all(request.model[n] is t for n, t in model.items()) for request in requests
        )
        if same:  # one model: clients need not be told apart
            tensors = self._stack([model])
            numbers = torch.cat(rows.index)
            lengths = torch.tensor([len(index) for index in rows.index])
            owners = torch.repeat_interleave(torch.arange(len(lengths)), lengths)
            for some, owned in zip(
                torch.split(numbers, EVALUATION_BATCH), torch.split(owners, EVALUATION_BATCH), strict=True
            ):
                x, y = rows.take(some, kind)
                yield x, y, owned.to(self._device), self._forward(tensors, x)
            return
        tensors = self._stack([request.model for request in requests])
        sizes = [len(index) for index in rows.index]
        width = min(max(sizes), EVALUATION_BATCH, max(1, ROWS // len(requests)))
        for start in range(0, max(sizes), width):
            left = [min(size - start, width) for size in sizes if size > start]
            m = len(left)
            parts = [index[start : start + width] for index in rows.index[:m]]
            x, y = rows.take(stacked_loss.pad(parts, max(left)), kind)
            outputs = self._forward({name: tensor[:m] for name, tensor in tensors.items()}, x)
            owners = torch.repeat_interleave(torch.arange(m), max(left))
            if min(left) < max(left):
                there = _real(left, torch.device("cpu"))
                assert there is not None
                kept = there.flatten().nonzero().squeeze(1)
                x, y, outputs, owners = x[kept], y[kept], outputs[kept], owners[kept]
            yield x, y, owners.to(self._device), outputs

    def _forward(self, tensors: Params, x: Tensor) -> Tensor:
        with self._autocast():
            return self._network(tensors, x)

    # ---- parts -------------------------------------------------------------------------------------------------------

    def _stack(self, models: Sequence[Params]) -> Params:
        """All tensors, stacked, in new memory; counts of batches at 0."""
        stacked: Params = {}
        for name in self._manifest.names():
            parts = [model[name] for model in models]
            if all(part is parts[0] for part in parts):
                stacked[name] = parts[0].to(self._device).expand(len(parts), *parts[0].shape).clone()
            else:
                stacked[name] = torch.stack(parts).to(self._device)
        for name in self._counts:
            stacked[name] = torch.zeros(len(models), dtype=torch.int64, device=self._device)
        return stacked

    def _count(self, tensors: Params, taken: Sequence[int]) -> None:
        for name in self._counts:
            assert name.endswith(COUNT)
            tensors[name] = torch.where(tensors[name] > 0, torch.tensor(taken, device=self._device), 0)

    def _results(self, requests: Sequence[Fit], tensors: Params, means: Sequence[float]) -> list[Trained]:
        counted = {name: tensors[name].tolist() for name in self._counts}
        names = self._manifest.names()
        tensors = {name: tensors[name].detach().cpu() for name in names}
        bad = [""] * len(requests)
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

    def _autocast(self) -> contextlib.AbstractContextManager[object]:
        return torch.autocast(self._device.type, torch.bfloat16) if self._bf16 else contextlib.nullcontext()


class _Plan:
    """The steps of several clients, sorted by their number, the most first.

    Args:
        requests: alike.
        device: where the model is.
    """

    def __init__(self, requests: Sequence[Fit], device: torch.device) -> None:
        self._requests, self._device = requests, device
        self.training = requests[0].training
        self.kind = requests[0].samples.kind
        self.rows = Rows.of([r.samples for r in requests], ["train"] * len(requests), device)
        self.steps = [request.size() for request in requests]
        counts = [len(index) for index in self.rows.index]
        self.epoch = [max(1, -(-count // self.training.batch_size)) for count in counts]

    def batches(self) -> Iterator[tuple[Tensor, Tensor, Tensor | None, list[int]]]:
        """Inputs and targets as folded batches, what of them is real, and each client's number of samples."""
        numbers, sizes = self._drawn() if not self.training.augment else ([], [])
        streams = [
            steps(index, self.training, r.generator) for index, r in zip(self.rows.index, self._requests, strict=True)
        ]
        change = augment.make(self.training, self.kind)
        for step in range(self.steps[0] if self.steps else 0):
            m = sum(taken > step for taken in self.steps)
            if not self.training.augment:
                here = sizes[step][:m]
                picked = torch.stack([number[step] for number in numbers[:m]])[:, : max(here)]
            else:
                some = [next(stream)[1] for stream in streams[:m]]
                here = [len(part) for part in some]
                picked = stacked_loss.pad(some, max(here))
            x, y = self.rows.take(picked, self.kind)
            if self.training.augment:
                parts = zip(x.chunk(m), here, self._requests, strict=False)
                x = torch.cat([torch.cat([change(p[:n], r.generator), p[n:]]) for p, n, r in parts])
            yield x, y, _real(here, self._device), here

    def _drawn(self) -> tuple[list[Tensor], list[list[int]]]:
        """Sample numbers of all steps of each client [steps, batch], and of each step all clients' batch sizes."""
        size, numbers, sizes = self.training.batch_size, [], []
        for index, taken, per_epoch, request in zip(
            self.rows.index, self.steps, self.epoch, self._requests, strict=True
        ):
            count = len(index)
            epochs = -(-taken // per_epoch)
            orders = [index[torch.randperm(count, generator=request.generator)] for _ in range(epochs)]
            order = torch.stack(orders) if orders else index.new_zeros(0, 0)
            if fill := per_epoch * size - count:
                order = torch.cat([order, index[:1].expand(epochs, fill)], 1) if epochs else order
            numbers.append(order.view(-1, size)[:taken])
            last = count - (per_epoch - 1) * size
            sizes.append([last if (step + 1) % per_epoch == 0 else size for step in range(taken)])
        most = len(sizes[0]) if sizes else 0
        return numbers, [[own[step] for own in sizes if len(own) > step] for step in range(most)]


class _Means:
    """The mean loss per sample of each client's last epoch."""

    def __init__(self, plan: _Plan, device: torch.device) -> None:
        self._epoch = torch.tensor(plan.epoch)
        self._total = torch.zeros(len(plan.epoch), device=device)
        self._seen = torch.zeros(len(plan.epoch))
        self._step = 0

    def add(self, each: Tensor, sizes: Sequence[int]) -> None:
        """Take the mean losses of a step's m clients."""
        m = len(sizes)
        fresh = self._step % self._epoch[:m] == 0
        counted = torch.tensor(sizes, dtype=torch.float32)
        self._total[:m] = self._total[:m].where(~fresh.to(each.device), 0.0) + each * counted.to(each.device)
        self._seen[:m] = self._seen[:m].where(~fresh, 0.0) + counted
        self._step += 1

    def values(self) -> list[float]:
        """A number for each client; 0 for one without samples."""
        found: list[float] = (self._total.cpu() / self._seen.clamp(min=1)).tolist()
        return found


class _Sums:
    """Hits, losses and numbers of predictions of several clients."""

    def __init__(self, clients: int, device: torch.device) -> None:
        self._clients = clients
        self._hits, self._loss, self._terms, self._n = (
            torch.zeros(clients, dtype=torch.float64, device=device) for _ in range(4)
        )

    def add(self, outputs: Tensor, targets: Tensor, owners: Tensor) -> None:
        """Take predictions of classes, or outputs of which only the loss counts."""
        each = stacked_loss.terms(outputs.float(), targets)
        self._loss += stacked_loss.sums(each, owners, self._clients)
        self._terms += stacked_loss.sums(torch.ones_like(each), owners, self._clients)
        if targets.dtype == torch.int64:
            hits = (outputs.argmax(-1) == targets).view(len(targets), -1)
            self._hits += stacked_loss.sums(hits, owners, self._clients)
            self._n += stacked_loss.sums(torch.ones_like(hits), owners, self._clients)
        else:
            self._n += stacked_loss.sums(torch.ones(len(targets), 1, device=each.device), owners, self._clients)

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


def _real(sizes: Sequence[int], device: torch.device) -> Tensor | None:
    """float32 [m, b], 1 for each client's samples and 0 for fillers; None without fillers."""
    widest = max(sizes)
    if min(sizes) == widest:
        return None
    return (torch.arange(widest) < torch.tensor(sizes)[:, None]).to(device, torch.float32)


def _generator(device: torch.device, seed: int) -> torch.Generator:
    return torch.Generator(device if device.type == "cuda" else "cpu").manual_seed(seed)
