"""Statistics over clients of a run's rows, for the last round and the round chosen on validation; and the digest."""

import hashlib
import json
import math
import struct
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from fedham_flwr.core.files import tensor_pieces
from fedham_flwr.core.records import MEMBER, Phase, RoundRecord, Row, check_rows
from fedham_flwr.training.metrics import ACCURACY, Metric, known


def score(rows: Iterable[Row], measured: Sequence[Metric] = ()) -> list[dict[str, float | int | str]]:
    """Statistics over clients of each (round, population, model, phase, split, metric), in this order.

    `mean` counts every client once, `weighted-mean` every sample once; `std` is over clients (divided by their
    number); `worst-decile` is the mean of the worst tenth of the clients, rounded up to whole clients.

    Args:
        rows: Of a run.
        measured: The run's metrics, which say of those of the user's own which values are worse.

    Raises:
        ValueError: A client has two values for the same thing.
    """
    groups: dict[tuple[int, str, str, str, str, str], list[Row]] = defaultdict(list)
    for row in rows:
        groups[row.round, row.population, row.model, row.phase, row.split, row.metric].append(row)
    return [_score_group(groups[key], measured) for key in sorted(groups)]


def final(rows: Sequence[Row], measured: Sequence[Metric] = ()) -> list[dict[str, float | int | str]]:
    """Statistics of the last round in `rows`; empty without rows.

    Args:
        rows: As for `score`.
        measured: As for `score`.
    """
    last = max((row.round for row in rows), default=0)
    return score((row for row in rows if row.round == last), measured)


def selected(
    rows: Sequence[Row], clients: set[str], by: Metric = ACCURACY, measured: Sequence[Metric] = ()
) -> list[dict[str, float | int | str]]:
    """Statistics of the round that validation chooses, for each (model, phase) of the members on its own.

    The candidates are the rounds in which every one of `clients` has a validation score; the best mean over the
    samples of these clients wins, the earliest of equals. Without a candidate it is the last round in which
    this (model, phase) appears, and `chosen-on` says so.

    Args:
        rows: The rows of a run.
        clients: The clients that have validation samples. Those for whom the metric is not defined in any round do
            not count.
        by: The metric of that score, the highest or the lowest of which is the best.
        measured: As for `score`.
    """
    groups: dict[tuple[str, str], list[Row]] = defaultdict(list)
    for row in rows:
        if row.population == MEMBER:
            groups[row.model, row.phase].append(row)
    entries = []
    for key in sorted(groups):
        chosen, reason = _choose(groups[key], clients, by)
        entries += [
            {**entry, "chosen-on": reason}
            for entry in score((row for row in groups[key] if row.round == chosen), measured)
        ]
    return entries


def ended(summary: Mapping[str, object], error: BaseException | None, phase: Phase) -> dict[str, Any]:
    """The summary of a run with how it ended: the `error`, or in `exported` which scores are of the models in `model/`.

    Args:
        summary: With the list `final`.
        error: What ended the run early.
        phase: Of the models that clients use.
    """
    if error is not None:
        return {**summary, "error": f"{type(error).__name__}: {error}"}
    entries: Any = summary["final"]
    found = {str(entry["model"]) for entry in entries if (entry["phase"], entry["population"]) == (phase, MEMBER)}
    model = "personal" if "personal" in found else min(found, default="")
    return {**summary, **({"exported": {"model": model, "phase": phase}} if found else {})}


def digest(tensors: Mapping[str, torch.Tensor], rows: Iterable[Row]) -> str:
    """SHA-256 of a run's tensors and rows: equal if and only if the results are equal, bit for bit.

    The order of both, the tensors' device and memory layout, and everything about time do not enter.
    """
    encoded = sorted(
        json.dumps([*row[:6], row.n, row.population]).encode() + struct.pack("<d", row.value) for row in rows
    )
    sha = hashlib.sha256(json.dumps([len(tensors), len(encoded)]).encode())
    for name in sorted(tensors):
        sha.update(json.dumps([name, str(tensors[name].dtype), list(tensors[name].shape)]).encode())
        for piece in tensor_pieces(tensors[name]):
            sha.update(piece)
    for line in encoded:
        sha.update(line)
    return sha.hexdigest()


def _choose(rows: Sequence[Row], clients: set[str], by: Metric) -> tuple[int, str]:
    """The round that validation prefers among `rows` of one (model, phase), and on what it was chosen."""
    measured: dict[int, list[Row]] = defaultdict(list)
    evaluated = {row.client for row in rows if (row.split, row.metric) == ("validation", "loss")}
    undefined = evaluated - {row.client for row in rows if (row.split, row.metric) == ("validation", by.name)}
    clients = clients - undefined
    for row in rows:
        if row.split == "validation" and row.metric == by.name and row.client in clients:
            measured[row.round].append(row)
    means = {
        number: float(_score_group(group, [by])["weighted-mean"])
        for number, group in measured.items()
        if len(group) == len(clients)
    }
    if not means:
        return max(row.round for row in rows), "last round"
    sign = 1 if by.higher else -1
    return max(means, key=lambda number: (sign * means[number], -number)), "validation"


def _score_group(rows: Sequence[Row], measured: Sequence[Metric]) -> dict[str, float | int | str]:
    """The statistics of rows that differ in client, value and n only."""
    check_rows(rows, rows[0].round)
    values = np.array([row.value for row in rows], dtype=np.float64)
    weights = np.array([row.n for row in rows], dtype=np.float64)
    ordered = np.sort(values) if known(rows[0].metric, measured).higher else np.sort(values)[::-1]
    total = float(weights.sum())
    what = {name: getattr(rows[0], name) for name in ("round", "population", "model", "phase", "split", "metric")}
    return what | {
        "mean": float(values.mean()),
        "weighted-mean": float(values @ weights) / total if total > 0 else math.nan,
        "std": float(values.std()),
        "worst-decile": float(ordered[: math.ceil(len(rows) / 10)].mean()),
        "clients": len(rows),
    }


def waited(record: RoundRecord) -> float:
    """Seconds of an exchange as the server sees it."""
    return record.seconds["exchange"] + record.seconds["check"]


def traffic(records: Iterable[RoundRecord]) -> dict[str, int | dict[str, int]]:
    """Bytes of tensors that were sent up and down: in all, and of each kind of exchange.

    Args:
        records: Of a run.
    """
    kinds: dict[str, dict[str, int]] = {}
    for record in records:
        total = kinds.setdefault(record.kind, {"up": 0, "down": 0})
        total["up"] += record.bytes_up
        total["down"] += record.bytes_down
    return {way: sum(kind[way] for kind in kinds.values()) for way in ("up", "down")} | kinds
