"""Scores over rounds, bytes and seconds: the figure of learning curves, and its numbers as tables."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any, NamedTuple

from fedham_flwr.analysis.cells import Cell, Column, Table
from fedham_flwr.analysis.collection import Collection
from fedham_flwr.analysis.facts import Point, RunFacts, Split
from fedham_flwr.analysis.numbers import MIB, amount, amount_text
from fedham_flwr.core.records import Phase
from fedham_flwr.page.compact import shortened, thinned
from fedham_flwr.page.html import figure, folded, score, score_text, shown
from fedham_flwr.page.sources import Places, named
from fedham_flwr.training.metrics import Metric

PHASES: tuple[Phase, ...] = ("before", "after")
SPLITS: tuple[Split, ...] = ("test", "validation")
POINTS, MOST = 60, 24_000
"""The most points of one curve, and of all curves of a page."""
COLUMNS = 10
"""Rounds of a curve that are columns of its table, at most."""
Key = tuple[str, str]
"""Split and phase."""


class Curves(NamedTuple):
    """Curves of all runs.

    Attributes:
        of: each run with its scores over the rounds, by split and phase.
        note: what was left out; empty if nothing was.
    """

    of: Sequence[tuple[RunFacts, Mapping[Key, Sequence[Point]]]]
    note: str

    def ends(self, task: str, split: str, phase: str = "") -> dict[str, list[Sequence[Point]]]:
        """Method -> the curves of its seeds, where there are any.

        Args:
            task: its label.
            split: whose scores.
            phase: before or after; by default that of the model that the method stands for.
        """
        found: dict[str, list[Sequence[Point]]] = defaultdict(list)
        for run, series in self.of:
            if run.task == task and (points := series.get((split, phase or run.phase))):
                found[run.method].append(points)
        return found


def curves_of(collection: Collection, share: float = 1.0) -> Curves:
    """The curves of all runs, thinned so that the page stays small.

    Args:
        collection: the runs.
        share: of the points that there are room for.
    """
    found = [(run, _series(run, collection.metrics[run.task])) for run in collection.runs]
    most = max(6, min(POINTS, int(MOST * share) // max(1, sum(len(series) for _, series in found))))
    longest = max((len(points) for _, series in found for points in series.values()), default=0)
    thin = [
        (run, {key: [points[at] for at in thinned(len(points), most)] for key, points in series.items()})
        for run, series in found
    ]
    note = (
        f"Of {longest} rounds in which clients were scored, {most} are drawn, spread evenly." if longest > most else ""
    )
    return Curves(thin, note)


def curve_data(collection: Collection, places: Places, curves: Curves) -> dict[str, Any]:
    """What the figures of scores are drawn from.

    Args:
        collection: the runs.
        places: of methods, tasks and seeds.
        curves: of all runs.
    """
    there = {key for _, series in curves.of for key in series}
    runs = [
        places.at(run)
        | {"own": run.phase, "values": {" ".join(key): _packed(points) for key, points in series.items()}}
        for run, series in curves.of
    ]
    return {
        "phases": ["own", *(phase for phase in PHASES if any(key[1] == phase for key in there))],
        "splits": [split for split in SPLITS if any(key[0] == split for key in there)],
        "split": collection.split,
        "first": _first(collection, curves),
        "runs": runs,
    }


def curve_parts(collection: Collection, curves: Curves) -> str:
    """The figure of learning curves, and its numbers.

    Args:
        collection: the runs.
        curves: of all runs.
    """
    split = _first(collection, curves)
    said = [_finding(collection, curves, task, split) for task in collection.tasks]
    several = len({run.seed for run in collection.runs}) > 1
    bands = " and seeds; bands reach from the lowest to the highest seed" if several else ""
    said += [f"Lines are means over clients{bands}.", curves.note]
    tables = []
    for task in collection.tasks:
        tables += [shown(_table(collection, curves, task, each)) for each in SPLITS if curves.ends(task, each)]
        tables.append(shown(_spent(collection, curves, task, split)))
    label = f"Learning curves: {split} score over the rounds"
    return figure("curves", label, " ".join(filter(None, said))) + folded("The curves as tables", *tables)


def _series(run: RunFacts, metric: Metric) -> dict[Key, Sequence[Point]]:
    found = {(split, phase): run.curve(split, phase, metric.name) for split in SPLITS for phase in PHASES}
    return {key: points for key, points in found.items() if points}


def _first(collection: Collection, curves: Curves) -> Split:
    """The split that is compared, if it was scored in more than one round; else the one that was scored most often."""
    lengths: dict[Split, int] = {
        split: max((len(series.get((split, run.phase), ())) for run, series in curves.of), default=0)
        for split in SPLITS
    }
    return collection.split if lengths[collection.split] > 1 else max(lengths, key=lambda split: lengths[split])


def _finding(collection: Collection, curves: Curves, task: str, split: Split) -> str:
    """Which method ends highest and which lowest, as means over seeds, in words."""
    ends = {method: [points[-1] for points in all_points] for method, all_points in curves.ends(task, split).items()}
    if not ends:
        return ""
    metric = collection.metrics[task]
    ranked = sorted(ends, key=lambda method: fmean(p.value for p in ends[method]), reverse=metric.higher)
    best, worst = (f"{m} has {_text(ends[m], metric)}" for m in (ranked[0], ranked[-1]))
    last = max(point.round for points in ends.values() for point in points)
    said = f"In the last evaluation, round {last}, {best} as {split} {metric.name}"
    return (
        named(collection, task, said + (f", the best mean over seeds, and {worst}, the worst" if len(ends) > 1 else ""))
        + "."
    )


def _text(points: Sequence[Point], metric: Metric) -> str:
    return score_text(fmean(point.value for point in points), metric)


def _table(collection: Collection, curves: Curves, task: str, split: Split) -> Table:
    """A method and phase in a row, a round in a column: the mean over seeds, and the lowest and the highest seed."""
    metric = collection.metrics[task]
    found = {phase: curves.ends(task, split, phase) for phase in PHASES}
    rounds = _rounds([points for ends in found.values() for runs in ends.values() for points in runs])
    rows = []
    for method in collection.methods:
        for phase, ends in found.items():
            if method in ends:
                own = any(run.phase == phase for run, _ in curves.of if (run.method, run.task) == (method, task))
                model = Cell(phase, marks=frozenset({"used"}) if own else frozenset())
                rows.append((Cell(method), model, *(_score(ends[method], at, metric) for at in rounds)))
    title = named(collection, task, f"{split} {metric.name} over the rounds, mean over seeds (lowest to highest)")
    columns = (
        Column("method", "text"),
        Column("model", "text", "before or after local training"),
        *(Column(f"round {at}", unit="%" if metric.bounded else "") for at in rounds),
    )
    notes = ("Before and after are of local training; a star is at the model that the method stands for.",)
    return Table(f"curves-{split}-{collection.tasks.index(task)}", title, columns, tuple(rows), notes)


def _spent(collection: Collection, curves: Curves, task: str, split: Split) -> Table:
    """A method in a row, a round in a column: what training had sent until then, and its seconds."""
    ends = curves.ends(task, split)
    rounds = _rounds([points for runs in ends.values() for points in runs])
    rows = []
    for method in (method for method in collection.methods if method in ends):
        cells = []
        for at in rounds:
            here = [point for points in ends[method] for point in points if point.round == at]
            seconds = f"{amount_text(fmean(point.seconds for point in here))} s" if here else ""
            cells.append(amount(fmean(point.bytes for point in here) / MIB if here else None, seconds))
        rows.append((Cell(method), *cells))
    title = named(collection, task, "MiB that training sent before each round, and its seconds, mean over seeds")
    columns = (Column("method", "text"), *(Column(f"round {at}") for at in rounds))
    return Table(f"spent-{collection.tasks.index(task)}", title, columns, tuple(rows))


def _rounds(curves: Sequence[Sequence[Point]]) -> list[int]:
    numbers = sorted({point.round for points in curves for point in points})
    return [numbers[at] for at in thinned(len(numbers), COLUMNS)]


def _score(runs: Sequence[Sequence[Point]], at: int, metric: Metric) -> Cell:
    values = [point.value for points in runs for point in points if point.round == at]
    if not values:
        return Cell()
    ends = (score(end, metric).text for end in (min(values), max(values)))
    return score(fmean(values), metric, " to ".join(ends) if len(values) > 1 else "")


def _packed(points: Sequence[Point]) -> dict[str, list[Any]]:
    return {
        "round": [point.round for point in points],
        "bytes": shortened((point.bytes for point in points), 4),
        "seconds": shortened((point.seconds for point in points), 4),
        "value": shortened(point.value for point in points),
    }
