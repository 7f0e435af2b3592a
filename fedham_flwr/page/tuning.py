"""What a search tried: its trials as a figure, and as a table with the chosen one marked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fedham_flwr.analysis.cells import Cell, Column, Table
from fedham_flwr.analysis.collection import Collection
from fedham_flwr.page.compact import short, thinned
from fedham_flwr.page.html import figure, folded, number, shown

Search = Mapping[str, Any]
"""One entry of `tuning.json`."""
MOST = 4_000
"""Trials of all searches that are drawn, at most; each table has as many."""


def tuning_data(collection: Collection) -> list[dict[str, Any]] | None:
    """What the figure of trials is drawn from; None if nothing was tuned.

    Args:
        collection: with its searches.
    """
    return [_search(collection, search) for search in collection.tuning if search["trials"]] or None


def tuning_parts(collection: Collection) -> str:
    """The chosen values, the figure of trials, and every trial in a table; nothing if nothing was tuned.

    Args:
        collection: with its searches.
    """
    searches = [search for search in collection.tuning if search["trials"]]
    if not searches:
        return ""
    names = [
        f"{search['method']}, {search['task']}" if len(collection.tasks) > 1 else search["method"]
        for search in searches
    ]
    said = [f"{name}: {_chosen(collection, search)}" for name, search in zip(names, searches, strict=True)]
    label = "What the search tried: the value of each setting against the validation score"
    trials = [
        shown(_trials(collection, search, f"Trials of {name}", at))
        for at, (name, search) in enumerate(zip(names, searches, strict=True))
    ]
    return (
        shown(_values(collection, searches))
        + figure("tuning-figure", label, "Chosen: " + "; ".join(said) + ".")
        + folded("Every trial", *trials)
    )


def _search(collection: Collection, search: Search) -> dict[str, Any]:
    space: Mapping[str, Any] = search["space"]
    trials = _some(collection, search)
    return {
        "method": search["method"],
        "task": search["task"],
        "metric": _metric(collection, search),
        "dimensions": [
            {
                "key": key,
                "log": bool(of.get("log")),
                "choice": [_word(v) for v in of["values"]] if "values" in of else None,
            }
            for key, of in space.items()
        ],
        "trials": [
            {
                "number": trial["number"],
                "state": trial["state"],
                "value": short(_score(trial)),
                "values": [_drawn(trial["values"].get(key), of) for key, of in space.items()],
            }
            for trial in trials
        ],
        "chosen": search["chosen"],
    }


def _some(collection: Collection, search: Search) -> Sequence[Mapping[str, Any]]:
    """The trials that are shown: all, or the chosen one and others spread evenly."""
    trials: Sequence[Mapping[str, Any]] = search["trials"]
    most = max(20, MOST // max(1, len(collection.tuning)))
    at = {*thinned(len(trials), most), *(i for i, trial in enumerate(trials) if trial["number"] == search["chosen"])}
    return [trials[i] for i in sorted(at)]


def _metric(collection: Collection, search: Search) -> str:
    metric = collection.metrics.get(search["task"], collection.metric)
    return metric.name


def _score(trial: Mapping[str, Any]) -> float | None:
    """The value of a trial; of one that was ended early, the last that was measured."""
    if trial["value"] is not None:
        return float(trial["value"])
    return float(trial["steps"][-1][1]) if trial.get("steps") else None


def _drawn(value: object, of: Mapping[str, Any]) -> object:
    if "values" in of or not isinstance(value, int | float):
        return _word(value)
    return short(float(value))


def _word(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _chosen(collection: Collection, search: Search) -> str:
    found = [trial for trial in search["trials"] if trial["number"] == search["chosen"]]
    if not found:
        return "none"
    values = ", ".join(f"{key} = {_word(value)}" for key, value in found[0]["values"].items())
    score = _score(found[0])
    return f"{values or 'nothing to set'}" + (
        f", {_metric(collection, search)} {number(score, True).text}" if score is not None else ""
    )


def _values(collection: Collection, searches: Sequence[Search]) -> Table:
    """A setting of a method in a row: what was searched, where the search began, and what was chosen."""
    columns = (
        Column("method", "text"), Column("task", "text"), Column("setting", "text"), Column("searched", "text"),
        Column("began with", "text"), Column("from", "text"), Column("chosen", "text"), Column("trials"),
    )  # fmt: skip
    rows = []
    for search in searches:
        chosen = next((trial["values"] for trial in search["trials"] if trial["number"] == search["chosen"]), {})
        for key, of in search["space"].items():
            words = (
                search["method"],
                search["task"],
                key,
                _range(of),
                _word(of.get("start")),
                of.get("source") or "default",
                _word(chosen.get(key, "–")),
            )
            rows.append((*map(Cell, words), number(len(search["trials"]))))
    return Table("tuned-values", "Chosen values", columns, tuple(rows))


def _range(of: Mapping[str, Any]) -> str:
    if "values" in of:
        return " | ".join(map(_word, of["values"]))
    return f"{_word(of['low'])} to {_word(of['high'])}" + (", log" if of.get("log") else "")


def _trials(collection: Collection, search: Search, title: str, place: int) -> Table:
    """A trial in a row."""
    keys = list(search["space"])
    columns = (
        Column("trial"),
        Column("state", "text"),
        Column(f"validation {_metric(collection, search)}"),
        *(Column(key, "text") for key in keys),
        Column("error", "text"),
    )
    rows = []
    for trial in _some(collection, search):
        chosen = "chosen" if trial["number"] == search["chosen"] else ""
        cells = (
            Cell(str(trial["number"]), trial["number"], note=chosen),
            Cell(trial["state"]),
            number(_score(trial), True),
        )
        rows.append((*cells, *(_setting(trial["values"].get(key)) for key in keys), Cell(trial.get("error", ""))))
    return Table(f"trials-{place}", title, columns, tuple(rows))


def _setting(value: object) -> Cell:
    return Cell(_word(value), float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None)
