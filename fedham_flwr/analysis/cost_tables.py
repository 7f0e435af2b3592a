"""The table of costs: what is sent, how long it takes, and what is reached at equal cost."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from fedham_flwr.analysis.budgets import Curve, area, needed, reached
from fedham_flwr.analysis.cells import Cell, Column, Table
from fedham_flwr.analysis.collection import Collection
from fedham_flwr.analysis.facts import Point, RunFacts, Split
from fedham_flwr.analysis.numbers import EMPTY, MIB, amount, amount_text, averaged, short_of
from fedham_flwr.analysis.rows import method_cell, task_cells, task_columns, unit_of, with_unit
from fedham_flwr.training.metrics import Metric

Points = Mapping[str, Mapping[int, Sequence[Point]]]
"""Method -> seed -> its curve."""
UNITS: tuple[tuple[str, Callable[[Point], float]], ...] = (
    ("MiB", lambda point: point.bytes / MIB),
    ("s", lambda point: point.seconds),
)
"""What can be spent."""


@dataclass(frozen=True)
class _Course:
    """The curves of a task, and the budgets that all methods can be compared at.

    Attributes:
        split: whose scores the curves are.
        points: of each run.
        budgets: unit -> the least that any run has spent in all; None if nobody spent anything.
        start: MiB from which on there are scores of every run that has any within the budget.
    """

    split: Split
    points: Points
    budgets: Mapping[str, float | None]
    start: float


def costs(collection: Collection) -> Table:
    """Traffic and time of training, what is reached at equal bytes and seconds, and when the reference is reached.

    Args:
        collection: the runs.
    """
    courses = {task: _course(collection, task) for task in collection.tasks}
    rows = [
        (method_cell(collection, method), *task_cells(collection, task), *_row(collection, method, task, courses[task]))
        for task in collection.tasks
        for method in collection.methods
        if collection.of(method, task)
    ]
    notes = _notes(collection, courses)
    return Table("costs", "Traffic and time of training", tuple(_columns(collection)), tuple(rows), tuple(notes))


def curve_split(collection: Collection, task: str) -> Split:
    """Whose scores the curves of a task are: validation, where every run has some; the test split is for the end.

    Args:
        collection: the runs.
        task: its label.
    """
    validated = all(run.value(split="validation") is not None for run in collection.runs if run.task == task)
    return "validation" if validated else collection.split


def _columns(collection: Collection) -> list[Column]:
    unit = unit_of(collection)
    columns = [
        Column("method", "text"),
        *task_columns(collection),
        Column("MiB up", help="that a client sends in a round of training"),
        Column("MiB down", help="that a client receives in a round of training"),
        Column("MiB in all", help="sent up and down in training, by all clients in all rounds"),
        Column("s a round", help="of training, as the server sees it"),
        Column("s in all", help="of the run, from its start to its end"),
    ]
    if len(collection.methods) > 1:
        columns += [
            Column(
                f"at equal {name}",
                help=f"score with at most as many {name} as the method that spends fewest",
                unit=unit,
            )
            for name, _ in UNITS
        ]
        columns.append(Column("area, MiB", help="mean of the score from the first evaluation to equal MiB", unit=unit))
        to = collection.reference
        columns += [Column(f"{name} to {to}", help=f"until the score that {to} ends with") for name, _ in UNITS]
    return columns


def _course(collection: Collection, task: str) -> _Course:
    split = curve_split(collection, task)
    points = {
        method: {seed: run.curve(split) for seed, run in collection.of(method, task).items()}
        for method in collection.methods
    }
    budgets = {}
    for name, spent in UNITS:
        # Who sends nothing at all sets no budget: with 0 bytes nobody else has begun.
        totals = [spent(curve[-1]) for runs in points.values() for curve in runs.values() if curve]
        budgets[name] = min((total for total in totals if total > 0), default=None)
    bytes_of, most = UNITS[0][1], budgets[UNITS[0][0]] or 0.0
    firsts = [bytes_of(curve[0]) for runs in points.values() for curve in runs.values() if curve]
    return _Course(split, points, budgets, max((first for first in firsts if first < most), default=0.0))


def _row(collection: Collection, method: str, task: str, course: _Course) -> list[Cell]:
    runs = collection.of(method, task)
    traffic = [_traffic(run) for run in runs.values()]
    up, down, total = (_mean([each[at] for each in traffic]) for at in range(3))
    seconds = [run.summary["seconds"] for run in runs.values()]
    pace = _mean([each["per-round"] for each in seconds if each["per-round"] is not None])
    cells = [amount(value) for value in (up, down, total, pace, _mean([each["total"] for each in seconds]))]
    if len(collection.methods) < 2:
        return cells
    metric, mine = collection.metrics[task], course.points[method]
    for name, spent in UNITS:
        budget = course.budgets[name]
        found = [reached(_spent(curve, spent), budget) for curve in mine.values()] if budget is not None else []
        cells.append(with_unit(collection, task, averaged(_finite(found), metric, len(runs))))
    cells.append(with_unit(collection, task, _area(mine, course, metric)))
    cells += [_until(collection, method, task, course, spent) for _, spent in UNITS]
    return cells


def _area(mine: Mapping[int, Sequence[Point]], course: _Course, metric: Metric) -> Cell:
    """The mean of the curves over bytes, from where all are scored up to the budget."""
    name, bytes_of = UNITS[0]
    budget = course.budgets[name]
    found = [area(_spent(curve, bytes_of), course.start, budget) for curve in mine.values()] if budget else []
    return averaged(_finite(found), metric, len(mine))


def _finite(values: Sequence[float | None]) -> list[float]:
    """Those that are numbers: a training that diverged on the way has had no score there."""
    return [value for value in values if value is not None and math.isfinite(value)]


def _until(collection: Collection, method: str, task: str, course: _Course, spent: Callable[[Point], float]) -> Cell:
    """What it takes to reach what the reference ends with, in the same seed: the mean over the seeds that reach it."""
    mine, theirs = course.points[method], course.points[collection.reference]
    both = [seed for seed in mine if seed in theirs and mine[seed] and theirs[seed]]
    higher = collection.metrics[task].higher
    found = [needed(_spent(mine[seed], spent), theirs[seed][-1].value, higher) for seed in both]
    known = [value for value in found if value is not None]
    if not known:
        return Cell("not reached" if both else EMPTY)
    cell = amount(_mean(known), note := short_of(len(known), len(both)))
    return Cell(f"{cell.text} ({note})" if note else cell.text, cell.value, note=note)


def _spent(curve: Sequence[Point], spent: Callable[[Point], float]) -> Curve:
    return [(spent(point), point.value) for point in curve]


def _traffic(run: RunFacts) -> tuple[float | None, float | None, float]:
    """MiB up and down of a client in a round of training, and of all clients in all rounds."""
    up = down = asked = 0
    waiting = (0, 0)
    for record in run.rounds:
        here = waiting[0] + record.bytes_up, waiting[1] + record.bytes_down
        waiting = here if record.kind == "query" else (0, 0)
        if record.kind == "train":
            up, down, asked = up + here[0], down + here[1], asked + len(record.cohort)
    each = (up / asked / MIB, down / asked / MIB) if asked else (None, None)
    return (*each, (up + down) / MIB)


def _mean(values: Sequence[float | None]) -> float | None:
    """The mean of those that are known."""
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _notes(collection: Collection, courses: Mapping[str, _Course]) -> list[str]:
    machines = {
        f"{run.environment.get('platform', 'an unknown machine')}, {run.environment.get('cpu-count', '?')} processors, "
        f"{run.environment.get('device', '?')}"
        for run in collection.runs
    }
    notes = [
        f"Seconds are of this machine and its load: {'; '.join(sorted(machines))}. A round's hold the scoring of its "
        "clients too."
    ]
    if len(collection.methods) > 1:
        for task, course in courses.items():
            said = [f"{amount_text(most)} {name}" for name, most in course.budgets.items() if most is not None]
            where = f"{task}: " if len(courses) > 1 else ""
            area_ = f"; the area begins at {amount_text(course.start)} MiB"
            notes.append(
                f"{where}Equal means at most {' and '.join(said)}, by {course.split} scores{area_}." if said else ""
            )
        notes.append(
            "Bytes are those of training, up and down, of the whole federation, before the scored model was there; "
            "between two evaluations the score is the earlier one's."
        )
    return [note for note in notes if note]
