"""The tables of scores: what each method reaches, before and after local training, and with novel clients."""

from __future__ import annotations

from fedham_flwr.analysis.cells import Cell, Column, Mark, Table
from fedham_flwr.analysis.collection import Collection
from fedham_flwr.analysis.difference_table import paired_over, together
from fedham_flwr.analysis.numbers import averaged
from fedham_flwr.analysis.rows import method_cell, task_cells, task_columns, unit_of, with_unit
from fedham_flwr.analysis.statistics import holm, verdict
from fedham_flwr.core.records import NOVEL

PHASES = ("before", "after")
FIXED = (
    "All seeds have the same clients, partition and splits, so that an interval is over the randomness of training on "
    "this one split."
)
DRAWN = "Each seed has a partition and splits of its own, so that an interval is over these as well."


def results(collection: Collection) -> Table:
    """Methods by rows: on each task the model that a method stands for, and those before and after local training.

    Args:
        collection: the runs.
    """
    columns, tops = [Column("method", "text")], {task: best(collection, task) for task in collection.tasks}
    for task in collection.tasks:
        metric, unit = collection.metrics[task], "%" if collection.metrics[task].bounded else ""
        prefix = f"{task}: " if len(collection.tasks) > 1 else ""
        help_ = f"mean over clients and seeds, {'higher' if metric.higher else 'lower'} is better"
        columns.append(
            Column(f"{prefix}{metric.name}", help=f"of the model that the method stands for; {help_}", unit=unit)
        )
        columns += [Column(f"{prefix}{phase}", help=f"{phase} local training; {help_}", unit=unit) for phase in PHASES]
    rows = []
    for method in collection.methods:
        cells = [method_cell(collection, method)]
        for task in collection.tasks:
            cells += _scores(collection, method, task, tops[task] == method)
        rows.append(tuple(cells))
    title = f"{collection.split.capitalize()} scores at the end"
    return Table("results", title, tuple(columns), tuple(rows), tuple(_notes(collection)))


def _scores(collection: Collection, method: str, task: str, top: bool) -> list[Cell]:
    """Three cells: used, before, after."""
    runs, metric = collection.of(method, task), collection.metrics[task]
    used = next((run.phase for run in runs.values()), "")
    expected = len(collection.seeds(task))
    marks: frozenset[Mark] = frozenset({"best"}) if top else frozenset()
    cells = [averaged([*collection.values(method, task).values()], metric, expected, marks)]
    for phase in PHASES:
        values = [*collection.values(method, task, phase).values()]
        cells.append(averaged(values, metric, expected, frozenset({"used"}) if phase == used else frozenset()))
    return cells


def best(collection: Collection, task: str) -> str:
    """The method with the best mean, if it is better than each other one by verdict; empty otherwise.

    The comparisons with all others are one family of tests.

    Args:
        collection: the runs.
        task: its label.
    """
    metric = collection.metrics[task]
    means = {method: found for method in collection.methods if (found := collection.values(method, task))}
    if len(means) < 2:
        return ""
    sign = 1 if metric.higher else -1
    first = max(means, key=lambda method: sign * sum(means[method].values()) / len(means[method]))
    gains = [paired_over(together(collection, first, other, task)) for other in means if other != first]
    ps = holm([gain.p if gain else None for gain in gains])
    better = "above" if metric.higher else "below"
    won = all(gain and verdict(gain.interval, p) == better for gain, p in zip(gains, ps, strict=True))
    return first if won else ""


def novel(collection: Collection) -> Table:
    """The scores of clients that never trained, before and after they adapted.

    Args:
        collection: the runs.
    """
    columns = [Column("method", "text"), *task_columns(collection)]
    columns += [
        Column(phase, help=f"{phase} adaptation, mean over novel clients and seeds", unit=unit_of(collection))
        for phase in PHASES
    ]
    rows = []
    for task in collection.tasks:
        for method in collection.methods:
            runs = collection.of(method, task).values()
            by_phase = [[run.value(phase, collection.split, population=NOVEL) for run in runs] for phase in PHASES]
            known = [[value for value in values if value is not None] for values in by_phase]
            if any(known):
                cells = [_of_novel(collection, task, values) for values in known]
                rows.append((method_cell(collection, method), *task_cells(collection, task), *cells))
    return Table("novel", f"{collection.split.capitalize()} scores of novel clients", tuple(columns), tuple(rows))


def _of_novel(collection: Collection, task: str, values: list[float]) -> Cell:
    return with_unit(collection, task, averaged(values, collection.metrics[task], len(collection.seeds(task))))


def _notes(collection: Collection) -> list[str]:
    """How to read the results."""
    several = any(len(collection.seeds(task)) > 1 for task in collection.tasks)
    notes = [
        "Mean over clients, each counted once, in the closing evaluation; the model that a method stands for is "
        "the one before or after local training that is marked with a star."
    ]
    if several:
        notes.append("Then the mean over seeds; ± is half of its 95 % interval (Student's t over seeds).")
        notes.append(DRAWN if any(run.data_seed < 0 for run in collection.runs) else FIXED)
    elif collection.runs:
        notes.append("One seed: there is no interval, and no method can be said to be above another.")
    if len(collection.methods) > 1 and several:
        notes.append("Bold is a best method that is better than each of the others by verdict (paired by seed, Holm).")
    if floors := [method for method in collection.methods if method in collection.floors]:
        notes.append(f"Floors, which every method should be better than: {', '.join(floors)}.")
    return [*notes, *collection.warnings]
