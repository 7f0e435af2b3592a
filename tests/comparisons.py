"""Runs and studies for tests of comparisons: directories as real runs leave them, with scores that are given."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fedham_flwr.core.records import NOVEL, RoundRecord, Row
from fedham_flwr.reporting.formats import json_text, toml_text
from fedham_flwr.reporting.run_directory import RunDirectory
from fedham_flwr.reporting.summary import final
from fedham_flwr.training.metrics import ACCURACY, Metric

MIB = 2**20


@dataclass
class Made:
    """A run to be made.

    Attributes:
        strategy: the setting.
        seed: the setting.
        scores: of each client the score of its own model at the end.
        other: how much the score of the other phase is above it.
        settings: beside these.
        phase: of the model that the method stands for.
        rounds: of training. The score before round r is (r - 1) / rounds of that at the end.
        splits: that are scored at the end; on the way without test if `closing`.
        closing: test is scored at the end only.
        up: bytes that a client sends in a round; down is as much.
        more: keys of the summary.
        environment: of environment.json.
        novel: scores of novel clients.
        metric: that all scores are of.
    """

    strategy: str = "fedper"
    seed: int = 0
    scores: Mapping[str, float] = field(default_factory=lambda: {"0": 0.5, "1": 0.7})
    other: float = -0.1
    settings: Mapping[str, Any] = field(default_factory=dict)
    phase: str = "before"
    rounds: int = 2
    splits: Sequence[str] = ("validation", "test")
    closing: bool = False
    up: int = MIB
    more: Mapping[str, Any] = field(default_factory=dict)
    environment: Mapping[str, Any] = field(default_factory=dict)
    novel: Mapping[str, float] = field(default_factory=dict)
    metric: Metric = ACCURACY

    def rows(self, number: int) -> list[Row]:
        """What a round measures."""
        last = number == self.rounds + 1
        splits = [split for split in self.splits if last or not (self.closing and split == "test")]
        share = (number - 1) / self.rounds
        return [
            Row(number, client, split, "personal", phase, self.metric.name, score * share + more, 10)
            for client, score in self.scores.items()
            for split in splits
            for phase in ("before", "after")
            for more in [0.0 if phase == self.phase else self.other]
        ]

    def novel_rows(self) -> list[Row]:
        """What novel clients have."""
        return [
            Row(self.rounds + 1, client, split, "personal", phase, self.metric.name, value, 10, NOVEL)
            for client, score in self.novel.items()
            for split in self.splits
            for phase, value in (("before", score / 2), ("after", score))
        ]

    def records(self) -> list[RoundRecord]:
        """The exchanges: training, then the evaluation of everybody."""
        who, times = tuple(self.scores), {"exchange": 2.0, "check": 0.5}
        sent = self.up * len(who)
        train = [RoundRecord(r, "train", who, len(who), (), times, sent, sent) for r in range(1, self.rounds + 1)]
        return [*train, RoundRecord(self.rounds + 1, "evaluate", who, len(who), (), times, 0, sent)]

    def write(self, path: Path) -> Path:
        """Make the directory."""
        (path / "metrics").mkdir(parents=True)
        given = {"strategy": self.strategy, "dataset": "digits", "seed": self.seed, "data-seed": 0, **self.settings}
        (path / "config.toml").write_text(toml_text(given))
        facts = {"started": f"2026-11-29T06:00:{self.seed:02}Z", "fedham-flwr": "0.1.0", "device": "cpu"}
        (path / "environment.json").write_text(json_text({**facts, **self.environment}))
        directory, rows = RunDirectory(path), []
        for record in self.records():
            found = self.rows(record.round)
            directory.write_round(record, found)
            rows = [*rows, *found]
        if self.novel:
            record = RoundRecord(self.rounds + 1, "novel", tuple(self.novel), 1, (), {"exchange": 1, "check": 0}, 0, 9)
            directory.write_round(record, self.novel_rows())
            rows += self.novel_rows()
        directory.write_clients([{"client": client, "name": client} for client in self.scores])
        directory.finish(self.summary(rows))
        return path

    def summary(self, rows: Sequence[Row]) -> dict[str, Any]:
        """Of the run."""
        return {
            "strategy": self.strategy, "dataset": "digits", "model": "digits-cnn", "seed": self.seed,
            "num-clients": len(self.scores), "failures": 0, "selection-metric": self.metric.name,
            "final": final(rows, [self.metric]), "selected": [], "seconds": {"per-round": 2.5, "total": 9.0},
            "bytes": {}, "exported": {"model": "personal", "phase": self.phase}, "digest": "ab" * 32, **self.more,
        }  # fmt: skip


def write_study(
    folder: Path, methods: Mapping[str, Mapping[str, Any]], runs: Mapping[tuple[str, str, int], Made], **plan: Any
) -> Path:
    """Make the folder of a study.

    Args:
        folder: of it.
        methods: label -> settings.
        runs: method, task, seed -> the run.
        plan: entries of plan.json, and `tuning`, of tuning.json.
    """
    tasks, tuning = plan.pop("tasks", {"digits": {}}), plan.pop("tuning", None)
    told = {
        "name": "test", "format": 1, "metric": None, "reference": next(iter(methods)), "floors": [], "settings": {},
        "methods": [{"label": label, "strategy": label, "settings": own} for label, own in methods.items()],
        "tasks": [{"label": label, "settings": own, "clients": 2} for label, own in tasks.items()],
        "seeds": sorted({seed for _, _, seed in runs}), "tune": None, **plan,
    }  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "plan.json").write_text(json.dumps(told))
    if tuning is not None:
        (folder / "tuning.json").write_text(json.dumps(tuning))
    for (method, task, seed), made in runs.items():
        store(folder, f"{method}-{task}-{seed}", method, task, made)
    return folder


def store(folder: Path, key: str, method: str, task: str, made: Made | None, **told: Any) -> Path:
    """Add a run to the folder of a study; of None nothing but its run.json."""
    (folder / "runs" / key).mkdir(parents=True)
    if made is not None:
        made.write(folder / "runs" / key / "strategy" / "time-0")
    seed, settings = (made.seed, dict(made.settings)) if made else (0, {})
    run = {
        "key": key, "role": "report", "method": method, "task": task, "seed": seed, "trial": -1, "settings": settings,
        "clients": 2, "state": "complete", "error": "", "directory": "strategy/time-0" if made else None, "steps": [],
        "seconds": 1.0, **told,
    }  # fmt: skip
    path = folder / "runs" / key / "run.json"
    path.write_text(json.dumps(run))
    return path
