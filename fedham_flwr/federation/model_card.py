"""What a client knows of the model that it exports: the facts of its card.

They are written where the model is, and sent nowhere.
"""

from __future__ import annotations

import datetime
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import flwr
import torch

from fedham_flwr import __version__
from fedham_flwr.core.errors import UnwritableError, reason
from fedham_flwr.core.files import digest
from fedham_flwr.core.records import MEMBER
from fedham_flwr.data.client_data import SPLITS, ClientData
from fedham_flwr.federation.client import RoundClient
from fedham_flwr.federation.job import Job
from fedham_flwr.models import cards, resolve
from fedham_flwr.settings import Value, defaults, flatten
from fedham_flwr.training.metrics import METRICS
from fedham_flwr.training.trainer import Predictor

ELSEWHERE = ("results-dir", "cache-dir", "resume", "dataset", "device", "bank-memory", "strategy", "task")
"""Settings that say nothing of the model."""
CAUTION = (
    "the scores are those of a predictor that asks the client's own training samples too; the file holds the network "
    "alone"
)
EPOCH = datetime.date(2000, 1, 1)
"""Dates of a table are days since then."""
ALONE = "Against training alone: "
EVERYBODYS = "Against everybody's model: "


class Exported(NamedTuple):
    """A model that a client has exported.

    Attributes:
        half: the client's, for this message.
        data: the client's, all of them.
        file: the model's.
        phase: before or after local training.
        calibrated: what `calibration` gave for it.
        predictor: what is scored, if it is more than the model.
    """

    half: RoundClient
    data: ClientData
    file: Path
    phase: str
    calibrated: float | None
    predictor: Predictor | None


def calibration(job: Job, data: ClientData, predictor: Predictor | None) -> float | None:
    """The expected calibration error of the model that is loaded on the client's test split; None if there is none.

    Args:
        job: the client's, for this message.
        data: the client's, all of them.
        predictor: what is scored.
    """
    if data.target != "class" or not len(data.splits["test"]):
        return None
    metric = METRICS["calibration-error"]
    return job.trainer.evaluate(data, "test", predictor, (metric,)).values.get(metric.name)


def write(model: Exported, metrics: Mapping[str, Any]) -> None:
    """Write the card of a model, beside it.

    Args:
        model: what it is of.
        metrics: all scores of this message.

    Raises:
        UserError: the files cannot be written.
    """
    client = model.half.job.client
    try:
        cards.write(model.file.parent, client, facts(model, metrics))
    except OSError as error:
        what = f"the model card of client {client} cannot be written"
        raise UnwritableError(f"{what}: {reason(error)}") from error


def facts(model: Exported, metrics: Mapping[str, Any]) -> cards.Facts:
    """The facts of a card; arguments as for `write`."""
    half, data, file, phase, calibrated, predictor = model
    job, settings = half.job, half.settings
    scores = _scores(metrics, phase)
    trained = sum(job.trainer.initial[name].numel() for name in job.trainer.parameter_names)
    return {
        "format": cards.FORMAT,
        "client": job.client,
        "name": data.name,
        "model": {
            "file": file.name,
            "sha256": digest(file),
            "network": resolve(settings.model, job.download.shape),
            "parameters": trained + job.trainer.manifest.fixed_parameters,
            "trained-parameters": trained,
            "phase": phase,
            "round": job.download.round,
        },
        "data": _data(data),
        "method": {
            "strategy": settings.strategy,
            "rounds": job.download.round - 1,  # a callback may have ended them before num-server-rounds
            "personal": list(half.split.personal),
            # A novel client sends none of them.
            **({"extras": extras} if (extras := job.method.extras) and job.stage.population == MEMBER else {}),
            "settings": _chosen(flatten(settings), settings.strategy),
        },
        "scores": scores,
        "compared": _compared(scores, settings.strategy),
        **({} if calibrated is None else {"calibration-error": calibrated}),
        "listened": "What the server mixed for this client it does not tell the client.",
        **({"caution": CAUTION} if predictor is not None else {}),
        "versions": {
            "fedham-flwr": __version__,
            "torch": torch.__version__,
            "flwr": flwr.__version__,
            "python": platform.python_version(),
        },
    }


def _data(data: ClientData) -> dict[str, Any]:
    """What the client has: counts, names, columns; nothing of a single sample."""
    recipe = data.recipe or {}
    told: dict[str, Any] = {
        "kind": recipe.get("kind", data.kind),
        "target": data.target,
        "samples": data.counts(),
    }
    if data.target == "class":
        counts = {split: data.label_counts(split) for split in SPLITS}
    elif data.target == "multi-label":
        counts = {split: data.labels[data.splits[split]].sum(0).tolist() for split in SPLITS}
    else:
        counts = {}
    if counts:
        names = enumerate(data.classes)
        told["classes"] = {name: {split: counts[split][place] for split in SPLITS} for place, name in names}
    elif data.target == "value":
        told["outputs"] = list(data.classes)
    if columns := recipe.get("columns"):
        told["columns"] = [column if isinstance(column, str) else column["name"] for column in columns]
    if period := _period(data):
        told["period"] = period
    return told


def _period(data: ClientData) -> dict[str, list[str]]:
    """The first and the last day of each column of dates, over all of the client's rows."""
    if data.scaling is None:
        return {}
    found, at = {}, 0
    index = torch.cat([data.splits[split] for split in SPLITS])
    for column in data.scaling.columns:
        if column.kind == "date":
            stored = data.features[index, at].double()
            days = (stored * data.scaling.std[at] + data.scaling.mean[at])[~stored.isnan()]
            ends = [days.min(), days.max()] if len(days) else []
            found[column.name] = [str(EPOCH + datetime.timedelta(round(float(end), 3))) for end in ends]
        at += column.width
    return {name: ends for name, ends in found.items() if ends}


def _scores(metrics: Mapping[str, Any], phase: str) -> list[dict[str, Any]]:
    """What was measured in this message: of each model, phase and split the metrics."""
    found: dict[tuple[str, str, str], dict[str, float]] = {}
    for key, value in metrics.items():
        split, *rest = key.split("/")
        if split in SPLITS and len(rest) == 3:
            model, when, name = rest
            found.setdefault((model, when, split), {})[name] = float(value)
    return [
        {
            "model": model,
            "phase": when,
            "split": split,
            "n": metrics.get(f"n/{split}"),
            "values": values,
            **({"exported": True} if when == phase else {}),
        }
        for (model, when, split), values in found.items()
    ]


def _compared(scores: list[dict[str, Any]], strategy: str) -> dict[str, str]:
    """A sentence on each model that one would compare with."""
    of_all = {each["split"]: each["values"] for each in scores if each["model"] == "global"}
    split = "test" if "test" in of_all or not of_all else "validation"
    told = ", ".join(f"{name} {value:.4g}" for name, value in of_all.get(split, {}).items())
    why = f", since strategy={strategy} has none" if scores else ""
    return {
        "global": EVERYBODYS + (f"{told} on the {split} split." if told else f"not measured{why}."),
        "local": ALONE
        + ("this is it." if strategy == "local" else "not measured in this run; strategy=local, else set alike, does."),
    }


def _chosen(settings: Mapping[str, Value], strategy: str) -> dict[str, Value]:
    """The method's own settings, and those that are not the defaults."""
    usual = defaults()
    return {
        key: value
        for key, value in settings.items()
        if key not in ELSEWHERE and (key.startswith(f"{strategy}.") or usual.get(key) != value)
    }
