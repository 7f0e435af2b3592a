"""What was compared, on what, and one sentence that the numbers allow."""

from __future__ import annotations

from collections.abc import Sequence

from fedham_flwr.analysis.cells import Table
from fedham_flwr.analysis.collection import Collection
from fedham_flwr.page.html import items, paragraph
from fedham_flwr.page.sources import Places


def headline_parts(collection: Collection, tables: Sequence[Table]) -> str:
    """The first paragraphs of a page.

    Args:
        collection: the runs.
        tables: all of the comparison.
    """
    return (
        paragraph(verdict(collection, tables), "verdict")
        + paragraph(compared(collection))
        + items(collection.warnings, "note")
    )


def compared(collection: Collection) -> str:
    """What was compared, on what, and in how many seeds.

    Args:
        collection: the runs.
    """
    methods = [method for method in collection.methods if method not in collection.floors]
    said = _counted(len(methods), "method") + (f" ({', '.join(methods)})" if methods else "")
    if collection.floors:
        said += f" and {_counted(len(collection.floors), 'floor')} ({', '.join(collection.floors)})"
    seeds = Places.of(collection).seeds
    measured = " and ".join(dict.fromkeys(metric.name for metric in collection.metrics.values()))
    return (
        f"Compared: {said}, on {', '.join(_task(collection, task) for task in collection.tasks)}, with "
        f"{_counted(len(seeds), 'seed')} ({', '.join(map(str, seeds))}), in {_counted(len(collection.runs), 'run')}, by the "
        f"{collection.split} {measured} of the model that each method stands for, as a mean over clients."
    )


def verdict(collection: Collection, tables: Sequence[Table]) -> str:
    """One sentence of how the methods stand to the reference, as far as the intervals say so.

    Args:
        collection: the runs.
        tables: of which that of differences is read.
    """
    found = next((table for table in tables if table.name == "differences"), None)
    if not collection.runs:
        return "No run has come to its end."
    if found is None or not found.rows:
        return _alone(collection)
    methods = {method: set[str]() for method in collection.methods}
    for row in found.rows:
        for cell in row:
            methods.setdefault(row[0].text, set()).update(cell.marks)
    above = [m for m, marks in methods.items() if "better" in marks]
    below = [m for m, marks in methods.items() if "worse" in marks]
    others = len({row[0].text for row in found.rows}) - len({*above, *below})
    parts = [f"{_listed(above)} {'is' if len(above) == 1 else 'are'} above {collection.reference}"] if above else []
    parts += [f"{_listed(below)} {'is' if len(below) == 1 else 'are'} below it"] if below and above else []
    parts += (
        [f"{_listed(below)} {'is' if len(below) == 1 else 'are'} below {collection.reference}"]
        if below and not above
        else []
    )
    parts += [f"{_counted(others, 'method')} cannot be told apart from it"] if others and parts else []
    if not parts:
        return f"No method can be told apart from {collection.reference} with these seeds."
    return "; ".join(parts) + "."


def _alone(collection: Collection) -> str:
    method, task = collection.methods[0], collection.tasks[0]
    values = list(collection.values(method, task).values())
    metric = collection.metrics[task]
    said = f"{sum(values) / len(values):.3f}" if values else "no score"
    return f"{method} reaches {collection.split} {metric.name} {said} on {task}; one method alone is compared with nothing."


def _task(collection: Collection, task: str) -> str:
    """A task with its clients."""
    run = next(run for run in collection.runs if run.task == task)
    return f"{task} ({_counted(int(run.summary['num-clients']), 'client')})"


def _counted(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
