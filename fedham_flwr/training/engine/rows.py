"""The samples of several clients, and the steps that they train with, as folded batches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from fedham_flwr.data.batches import Kind, inputs_and_targets
from fedham_flwr.training import augment
from fedham_flwr.training.engine.memory import Resident, moved
from fedham_flwr.training.engine.requests import Fit
from fedham_flwr.training.guard import rows_of
from fedham_flwr.training.local import Samples, steps


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
    def of(cls, several: Sequence[Samples], split: Sequence[str], resident: Resident, device: torch.device) -> Rows:
        """Those of one split of each client: where they are if all are in one place, else copied.

        Args:
            several: the clients' data.
            split: of each.
            resident: data sets that are on the device as a whole.
            device: where the model is.
        """
        stored = [rows_of(samples, which) for samples, which in zip(several, split, strict=True)]
        places = {(features.data_ptr(), labels.data_ptr(), len(features)) for features, labels, _ in stored}
        whole = resident.at_hand(*stored[0][:2]) if len(places) == 1 else None
        picked = [index for _, _, index in stored]
        if whole is not None:
            return cls(*whole, picked)
        features = moved(torch.cat([found[index] for found, _, index in stored]), device)
        labels = moved(torch.cat([found[index] for _, found, index in stored]), device)
        sizes, start, index = [len(part) for part in picked], 0, []
        for size in sizes:
            index.append(torch.arange(start, start + size))
            start += size
        return cls(features, labels, index)

    def take(self, numbers: Tensor, kind: Kind) -> tuple[Tensor, Tensor]:
        """Inputs and targets of samples by their numbers, int64 of any shape, as one folded batch."""
        flat = numbers.flatten().to(self.features.device)
        return inputs_and_targets(self.features.index_select(0, flat), self.labels.index_select(0, flat), kind)


class Plan:
    """The steps of several clients, sorted by their number, the most first.

    Args:
        requests: alike.
        resident: data sets that are on the device as a whole.
        device: where the model is.

    Attributes:
        rows: their samples.
        epoch: steps of an epoch of each client.
    """

    def __init__(self, requests: Sequence[Fit], resident: Resident, device: torch.device) -> None:
        self._requests, self._device = requests, device
        self._training, self._kind = requests[0].training, requests[0].samples.kind
        self.rows = Rows.of([r.samples for r in requests], ["train"] * len(requests), resident, device)
        self.epoch = [max(1, -(-len(index) // self._training.batch_size)) for index in self.rows.index]

    def batches(self) -> Iterator[tuple[Tensor, Tensor, Tensor | None, list[int]]]:
        """Of each step the inputs and targets as folded batches, what of them is real, and each client's samples."""
        if not self._training.augment:
            for numbers, sizes in self._drawn():
                x, y = self.rows.take(numbers, self._kind)
                yield x, y, real_samples(sizes, self._device), sizes
            return
        change = augment.make(self._training, self._kind)
        for several in self._streams():
            sizes = [len(some) for some in several]
            parts = [self.rows.take(some, self._kind) for some in several]
            changed = [change(x, r.generator) for (x, _), r in zip(parts, self._requests, strict=False)]
            places = pad(torch.split(torch.arange(sum(sizes)), sizes), max(sizes)).flatten()
            x, y = torch.cat(changed)[places], torch.cat([targets for _, targets in parts])[places]
            yield x, y, real_samples(sizes, self._device), sizes

    def _streams(self) -> Iterator[list[Tensor]]:
        """Sample numbers of each step, drawn one at a time, between which other things may be drawn."""
        streams = [
            steps(index, self._training, request.generator)
            for index, request in zip(self.rows.index, self._requests, strict=True)
        ]
        while True:
            drawn = [next(stream, None) for stream in streams]
            several = [step[1] for step in drawn if step is not None]
            if not several:
                return
            streams = streams[: len(several)]
            yield several

    def _drawn(self) -> Iterator[tuple[Tensor, list[int]]]:
        """Sample numbers [m, b] and batch sizes of each step, all drawn at once."""
        size, numbers, sizes = self._training.batch_size, [], []
        for index, per_epoch, request in zip(self.rows.index, self.epoch, self._requests, strict=True):
            count, taken = len(index), request.size()
            epochs = -(-taken // per_epoch)
            orders = [index[torch.randperm(count, generator=request.generator)] for _ in range(epochs)]
            fill = per_epoch * size - count
            order = torch.cat([part for whole in orders for part in (whole, index[:1].expand(fill))])
            numbers.append(order.view(-1, size)[:taken])
            last = torch.full((taken,), size)
            last[per_epoch - 1 :: per_epoch] = size - fill
            sizes.append(last)
        packed, held = pad_sequence(numbers), pad_sequence(sizes).tolist()
        for step, row in enumerate(held):
            here = [count for count in row if count]
            yield packed[step, : len(here), : max(here)], here


class Means:
    """The mean loss per sample of each client's last epoch."""

    def __init__(self, plan: Plan, device: torch.device) -> None:
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


def pad(rows: Sequence[Tensor], width: int) -> Tensor:
    """Sample numbers of several clients [m, width], each filled up with its own first one."""
    out = torch.stack([row[:1].expand(width) for row in rows])
    for place, row in enumerate(rows):
        out[place, : len(row)] = row
    return out


def real_samples(sizes: Sequence[int], device: torch.device) -> Tensor | None:
    """float32 [m, b], 1 for each client's samples and 0 for fillers; None without fillers."""
    widest = max(sizes)
    if min(sizes) == widest:
        return None
    return (torch.arange(widest) < torch.tensor(sizes)[:, None]).to(device, torch.float32)


def generator(device: torch.device, seed: int) -> torch.Generator:
    """A generator where a model is."""
    return torch.Generator(device if device.type == "cuda" else "cpu").manual_seed(seed)
