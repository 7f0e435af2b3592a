"""What a search tried: its trials as a figure, and each of them in a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fedham_flwr.analysis.cells import Cell, Column, Table
from fedham_flwr.analysis.collection import Collection
from fedham_flwr.analysis.labels import value_text
from fedham_flwr.page.compact import short, thinned
from fedham_flwr.page.html import figure, folded, score, score_text, shown
from fedham_flwr.training.metrics import Metric

Search = Mapping[str, Any]
"""One entry of `tuning.json`."""
MOST = 4_000
"""Trials of all searches that are drawn, at most; the tables have as many."""


def tuning_data(collection: Collection, share: float = 1.0) -> list[dict[str, Any]] | None:
    """What the figure of trials is drawn from; None if nothing was tuned.

    Args:
        collection: with its searches.
        share: of the trials that there is room for.
    """
    return [_packed(collection, search, share) for search in _tried(collection)] or None


def tuning_parts(collection: Collection, share: float = 1.0) -> str:
    """The figure of trials, and every trial in a table; nothing if nothing was tuned.

    Args:
        collection: with its searches.
        share: of the trials that there is room for.
    """
    searches = _tried(collection)
    if not searches:
        return ""
    said = [f"{_name(collection, search)}: {_chosen(collection, search)}" for search in searches]
    label = "What the search tried: the value of each setting against the validation score"
    finding = f"Chosen on validation: {'; '.join(said)}."
    tables = [shown(_trials(collection, search, at, share)) for at, search in enumerate(searches)]
    return figure("tuning-figure", label, finding) + folded("Every trial", *tables)


def _tried(collection: Collection) -> list[Search]:
    return [search for search in collection.tuning if search["trials"]]


def _name(collection: Collection, search: Search) -> str:
    return f"{search['method']}, {search['task']}" if len(collection.tasks) > 1 else str(search["method"])


def _packed(collection: Collection, search: Search, share: float) -> dict[str, Any]:
    space: Mapping[str, Mapping[str, Any]] = search["space"]
    return {
        "method": search["method"],
        "task": search["task"],
        "metric": _metric(collection, search).name,
        "dimensions": [
            {"key": key, "log": bool(of.get("log")), "choice": [value_text(value) for value in of.get("values", ())]}
            for key, of in space.items()
        ],
        "trials": [
            {
                "number": trial["number"],
                "state": trial["state"],
                "value": short(_score(trial)),
                "values": [_drawn(trial["values"].get(key), of) for key, of in space.items()],
            }
            for trial in _some(collection, search, share)
        ],
        "chosen": search["chosen"],
    }


def _some(collection: Collection, search: Search, share: float) -> Sequence[Mapping[str, Any]]:
    """The trials that are shown: all, or the chosen one and others spread evenly."""
    trials: Sequence[Mapping[str, Any]] = search["trials"]
    most = max(20, int(MOST * share) // max(1, len(collection.tuning)))
    at = {*thinned(len(trials), most), *(i for i, trial in enumerate(trials) if trial["number"] == search["chosen"])}
    return [trials[i] for i in sorted(at)]


def _metric(collection: Collection, search: Search) -> Metric:
    return collection.metrics.get(str(search["task"]), collection.metric)


def _score(trial: Mapping[str, Any]) -> float | None:
    """The value of a trial; of one that was ended early, the last that was measured."""
    if trial["value"] is not None:
        return float(trial["value"])
    return float(trial["steps"][-1][1]) if trial.get("steps") else None


def _drawn(value: Any, of: Mapping[str, Any]) -> object:
    return value_text(value) if "values" in of or value is None else short(float(value))


def _chosen(collection: Collection, search: Search) -> str:
    found = next((trial for trial in search["trials"] if trial["number"] == search["chosen"]), None)
    if found is None:
        return "none"
    metric = _metric(collection, search)
    values = ", ".join(f"{key} = {value_text(value)}" for key, value in found["values"].items())
    return f"{values or 'nothing to set'} ({metric.name} {score_text(_score(found), metric)})"


def _trials(collection: Collection, search: Search, place: int, share: float) -> Table:
    """A trial in a row."""
    keys, metric = list(search["space"]), _metric(collection, search)
    columns = (
        Column("trial"),
        Column("state", "text"),
        Column(f"validation {metric.name}", unit="%" if metric.bounded else ""),
        *(Column(key, "text") for key in keys),
        Column("error", "text"),
    )
    rows = []
    for trial in _some(collection, search, share):
        chosen = "chosen" if trial["number"] == search["chosen"] else ""
        early = "the last before it was ended" if trial["value"] is None and trial.get("steps") else ""
        cells = (Cell(str(trial["number"]), trial["number"], note=chosen), Cell(trial["state"]))
        values = (_setting(trial["values"].get(key)) for key in keys)
        rows.append((*cells, score(_score(trial), metric, early), *values, Cell(trial.get("error", ""))))
    return Table(f"trials-{place}", f"Trials of {_name(collection, search)}", columns, tuple(rows))


def _setting(value: Any) -> Cell:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return Cell(value_text(value), float(value) if number else None)
