"""Run directories with known numbers, made without training, for tests of comparisons."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from fedham_flwr.core.records import Failure, MixingWeights, RoundRecord, Row
from fedham_flwr.reporting.mixing_weights import write_weights
from fedham_flwr.reporting.run_directory import RunDirectory
from fedham_flwr.reporting.summary import final, traffic
from fedham_flwr.settings import defaults

GAINS = {"local": 0.0, "fedavg": -0.125, "fedper": 0.25, "pfedla": 0.1875}
"""By how much a method's scores are above those of local."""


def score(strategy: str, seed: int, client: int, round_number: int, phase: str) -> float:
    """A client's accuracy, in sixty-fourths, so that sums of it are exact."""
    base = 0.25 + client / 64 + seed / 64 + min(round_number, 8) / 64 + (1 / 64 if phase == "after" else 0.0)
    return base + GAINS[strategy] + (seed % 2) / 64


def make_run(
    root: Path, strategy: str, seed: int, clients: Sequence[str], rounds: int = 3, groups: Sequence[str] = (),
    more: Mapping[str, Any] | None = None,
) -> Path:  # fmt: skip
    """A run's directory as a run leaves it, with mixing weights if there are layer groups."""
    settings = {**defaults(), "strategy": strategy, "seed": seed, "num-server-rounds": rounds, **(more or {})}
    directory = RunDirectory.create(root, strategy, seed, settings)
    rows: list[Row] = []
    for number in range(1, rounds + 2):
        closing = number > rounds
        rows = [
            Row(number, client, split, "personal", phase, metric, value, 16)
            for at, client in enumerate(clients)
            for split in ("test", "validation")
            for phase in ("before", "after")
            for metric, value in (("accuracy", score(strategy, seed, at, number, phase)), ("loss", 1.0))
        ]
        kind = "evaluate" if closing else "train"
        lost = (Failure(number, kind, clients[0], "RuntimeError: <b>out of memory</b>"),) if number == 2 else ()
        seconds = {"exchange": 0.5, "check": 0.0}
        record = RoundRecord(number, kind, tuple(clients), len(clients), lost, seconds, 0 if closing else 1000, 2000)
        directory.write_round(record, rows)
        if groups:
            write_weights(directory.path, number, kind, weights_of(clients, groups, number))
    directory.write_clients([{"client": client, "name": client, "train": 32, "validation": 16, "test": 16,
                              "train-labels": [16, 16], "class-names": ["<i>a</i>", '"b"'], "novel": False}
                             for client in clients])  # fmt: skip
    directory.finish(
        {
            "strategy": strategy, "dataset": "digits", "model": "digits-cnn", "seed": seed, "num-clients": len(clients),
            "num-rounds": rounds, "failures": 1, "selection-metric": "accuracy", "final": final(rows), "selected": [],
            "seconds": {"start-up": 0.1, "per-round": 0.5, "total": 2.0},
            "bytes": traffic(directory.read_rounds()), "exported": {"model": "personal", "phase": "before"},
            "digest": f"{seed:064x}",
        }
    )  # fmt: skip
    return directory.path


def weights_of(clients: Sequence[str], groups: Sequence[str], number: int) -> MixingWeights:
    """Weights that are another for each cell and round; each row sums to 1."""
    count = len(clients)
    raw = torch.arange(1.0, count * len(groups) * count + 1).reshape(count, len(groups), count) + number
    return MixingWeights(tuple(clients), tuple(groups), tuple(clients), raw / raw.sum(-1, keepdim=True))
