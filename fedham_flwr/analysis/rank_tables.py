"""The table of ranks over tasks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from fedham_flwr.analysis.cells import Cell, Column, Table
from fedham_flwr.analysis.collection import Collection
from fedham_flwr.analysis.ranks import friedman, mean_rank, shared_ranks
from fedham_flwr.analysis.rows import method_cell


def ranks(collection: Collection) -> Table:
    """The rank of each method on each task, by its mean over seeds, and the mean rank; of at least two tasks.

    Args:
        collection: the runs. A method that has no run on a task is left out.
    """
    columns = [Column("method", "text"), Column("mean rank", help="over tasks, 1 is best, and its 95 % interval")]
    columns += [Column(task, help="rank by the mean over seeds; ties share") for task in collection.tasks]
    means = _means(collection)
    by_task = [
        shared_ranks([means[method][at] for method in means], collection.metrics[task].higher)
        for at, task in enumerate(collection.tasks)
    ]
    rows = []
    if len(collection.tasks) > 1 and len(means) > 1:
        for at, method in enumerate(means):
            mine = [found[at] for found in by_task]
            cells = [_mean(mine, len(means)), *(Cell(f"{rank:g}", rank) for rank in mine)]
            rows.append((method_cell(collection, method), *cells))
    notes = _notes(collection, means) if rows else []
    return Table("ranks", "Ranks over tasks", tuple(columns), tuple(rows), tuple(notes))


def _means(collection: Collection) -> dict[str, list[float]]:
    """Method -> its mean over seeds on each task, of those that have a run on every task."""
    found: dict[str, list[float]] = {}
    for method in collection.methods:
        values = [[*collection.values(method, task).values()] for task in collection.tasks]
        if all(values):
            # Means that are equal can differ in their last bits, and are ties.
            found[method] = [float(f"{sum(each) / len(each):.12g}") for each in values]
    return found


def _mean(mine: Sequence[float], methods: int) -> Cell:
    found = mean_rank(mine, methods)
    text = f"{found.mean:.2f}"
    if found.low is not None and found.high is not None:
        text += f" [{found.low:.2f}, {found.high:.2f}]"
    return Cell(text, found.mean, found.low, found.high, found.why)


def _notes(collection: Collection, means: Mapping[str, Sequence[float]]) -> list[str]:
    notes = [
        f"The interval is Student's over the {len(collection.tasks)} tasks, cut to ranks that there are: it says what "
        "may be expected of a further task like these, and with a few tasks that is little."
    ]
    if left := [method for method in collection.methods if method not in means]:
        notes.append(f"Left out, since a task has no run of it: {', '.join(left)}.")
    if len(collection.tasks) > 2 and len(means) > 2:
        columns = [[values[at] for values in means.values()] for at in range(len(collection.tasks))]
        if any(len(set(column)) > 1 for column in columns):
            found = friedman(columns)
            notes.append(f"Friedman's test of whether methods differ: chi² = {found.statistic:.2f}, p = {found.p:.3f}.")
    return notes
