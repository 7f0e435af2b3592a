"""Methods of a user's that look where they may not, and data by a function: used by import path in tests."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch

from fedham_flwr import AveragingStrategy, Method, Outcome, RoundClient, split_groups
from fedham_flwr.federation.stages import EVALUATE


def images(client: int, permuted: bool = False) -> dict[str, Any]:
    """Pictures [n, 8, 8, 1] of three kinds; `permuted` gives each test picture the label of another one."""
    draw = np.random.default_rng([7, client])
    kinds = draw.permutation(np.arange(30) % 3)
    pictures = (draw.integers(0, 60, (30, 8, 8, 1)) + 80 * kinds[:, None, None, None]).astype(np.uint8)
    tested = np.roll(kinds[22:], 1) if permuted else kinds[22:]
    parts = {"train": slice(0, 16), "validation": slice(16, 22), "test": slice(22, 30)}
    return {which: (pictures[part], tested if which == "test" else kinds[part]) for which, part in parts.items()}


def mixed_up(half: RoundClient, numbers: Any) -> Any:
    """The client's data with other samples to train on."""
    return dataclasses.replace(half.job.data, splits={"train": numbers})


READS: Mapping[str, Callable[[RoundClient, Any], Any]] = {
    "its numbers": lambda half, _: half.job.data.splits["test"].tolist(),
    "a number": lambda half, _: half.job.data.splits["test"][0],
    "each number": lambda half, _: list(half.job.data.splits["test"]),
    "an array": lambda half, _: np.asarray(half.job.data.splits["test"]),
    "joined": lambda half, _: torch.cat([half.job.data.splits["train"], half.job.data.splits["test"]]),
    "labels": lambda half, _: half.job.data.labels[half.job.data.splits["test"]],
    "features": lambda half, _: half.job.data.features.index_select(0, half.job.data.splits["test"]),
    "counts": lambda half, _: half.job.data.label_counts("test"),
    "all labels": lambda half, _: half.job.data.labels.sum(),
    "all features": lambda half, _: torch.stack([half.job.data.features]),
    "every row": lambda half, _: half.job.data.labels[:],
    "by place": lambda half, _: half.job.data.labels[torch.arange(len(half.job.data.labels))],
    "a column": lambda half, _: half.job.data.features[..., 0],
    "scores": lambda half, start: half.score(start, "test"),
    "evaluates": lambda half, _: half.job.trainer.evaluate(half.job.data, "test"),
    "descends": lambda half, _: half.job.trainer.gradient(half.job.data, "test", 4, torch.Generator()),
    "passes it on": lambda half, start: half.fit(start, samples=mixed_up(half, half.job.data.splits["test"])),
    "trains on all": lambda half, start: half.fit(
        start, samples=mixed_up(half, torch.arange(len(half.job.data.labels)))
    ),
}
"""Ways to read of the test split in a client half."""


class Reader(RoundClient):
    """Reads in one of these ways before it trains."""

    way = ""

    def train(self, start: Any) -> Outcome:
        READS[self.way](self, start)
        return super().train(start)


class Polite(RoundClient):
    """Reads what it may, and notes what it finds of test scores."""

    found: list[str] = []  # noqa: RUF012  # of the test that clears it

    def train(self, start: Any) -> Outcome:
        data = self.job.data
        train, validation = data.splits["train"], data.splits["validation"]
        assert len(data.labels[train]) == len(train) == sum(data.label_counts("train"))
        assert torch.equal(data.features.index_select(0, train), data.features[train])
        assert torch.equal(data.labels[train[:3]], data.labels[train][:3])
        assert data.labels[int(validation[0])] == data.labels[validation][0]
        assert data.counts() == {split: len(index) for split, index in data.splits.items()}
        assert data.features.shape[1:] == data.features[train].shape[1:]
        assert data.counts()["test"] > 0
        assert self.score(start, "validation").n == len(validation)
        self.found += [key for key in self.metrics if "test" in key]
        half = self.fit(start, samples=mixed_up(self, train[::2]), purpose="half")
        return self.outcome(self.fit(half))


class NotedStrategy(AveragingStrategy):
    """Notes what it is told of test scores."""

    def merge(self, round_number: int, uploads: Mapping[str, Any]) -> None:
        rows = [row for upload in uploads.values() for row in upload.rows]
        assert {row.split for row in rows} >= {"validation"}
        Polite.found += [row.split for row in rows if row.split == "test"]
        super().merge(round_number, uploads)


class Leaks(RoundClient):
    """Trains on whatever it is given of the test split, by what is no method's business."""

    def train(self, start: Any) -> Outcome:
        if self.job.stage is EVALUATE:
            return super().train(start)
        data = self.job.data
        numbers = torch.cat([data.splits["train"], data.splits["test"]])
        return self.outcome(self.fit(start, samples=mixed_up(self, numbers)))


def everything(manifest: Any, settings: object) -> Any:
    return split_groups(manifest, ())


READER = Method(AveragingStrategy, Reader, everything, averages=True, name="reader")
POLITE = Method(NotedStrategy, Polite, everything, averages=True, name="polite")
LEAKS = Method(AveragingStrategy, Leaks, everything, averages=True, name="leaks")
