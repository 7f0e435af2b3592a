"""What was compared, on what, and one sentence that the numbers allow."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

from fedham_flwr.analysis.collection import Collection
from fedham_flwr.analysis.difference_table import compared
from fedham_flwr.analysis.statistics import ONE_SEED
from fedham_flwr.page.html import items, paragraph, score_text
from fedham_flwr.page.sources import Places

FEW = 4
"""Names up to which all are said."""


def headline_parts(collection: Collection) -> str:
    """The first paragraphs of a page.

    Args:
        collection: the runs.
    """
    if not collection.runs:
        return paragraph("No run has come to its end.", "verdict")
    return (
        "".join(paragraph(verdict(collection, task), "verdict") for task in collection.tasks)
        + paragraph(scope(collection))
        + items(collection.warnings, "note")
    )


def scope(collection: Collection) -> str:
    """What was compared, on what, and in how many seeds.

    Args:
        collection: with at least one run.
    """
    methods = [method for method in collection.methods if method not in collection.floors]
    said = _counted(len(methods), "method") + (f" ({_joined(methods)})" if methods else "")
    if collection.floors:
        said += f" and {_counted(len(collection.floors), 'floor')} ({_joined(collection.floors)})"
    seeds = Places.of(collection).seeds
    measured = " and ".join(dict.fromkeys(metric.name for metric in collection.metrics.values()))
    tasks = ", ".join(_task(collection, task) for task in collection.tasks)
    return (
        f"Compared: {said}, on {tasks}, with {_counted(len(seeds), 'seed')} ({', '.join(map(str, seeds))}), in "
        f"{_counted(len(collection.runs), 'run')}, by the {collection.split} {measured} of the model that each method "
        "stands for, as a mean over clients."
    )


def verdict(collection: Collection, task: str) -> str:
    """One sentence of how the methods stand to the reference on a task, as far as the intervals say so.

    Args:
        collection: the runs.
        task: its label.
    """
    where = f"On {task}, " if len(collection.tasks) > 1 else ""
    found = [each for each in compared(collection) if each.task == task and each.word] if collection.reference else []
    if not found:
        return _best(collection, task)
    reference, metric = collection.reference, collection.metrics[task]
    words = {
        "above": "above" if metric.higher else "above (worse)",
        "below": "below" if metric.higher else "below (better)",
    }
    names = {said: [each.method for each in found if each.word == word] for word, said in words.items()}
    parts = [f"{_listed(n)} {'is' if len(n) == 1 else 'are'} {said} {reference}" for said, n in names.items() if n]
    others = sum(each.word not in ("above", "below") for each in found)
    if not parts:
        why = "with one seed" if all(each.word == ONE_SEED for each in found) else "with these seeds"
        said = f"{where}no method can be told apart from {reference} in {collection.split} {metric.name} {why}."
        return said[0].upper() + said[1:]
    parts += [f"{_counted(others, 'other')} cannot be told apart from it"] if others else []
    parts[0] += f" in {collection.split} {metric.name}"
    return f"{where}{'; '.join(parts)}."


def _best(collection: Collection, task: str) -> str:
    """The means, where nothing can be tested."""
    means = {m: fmean(found.values()) for m in collection.methods if (found := collection.values(m, task))}
    if not means:
        return f"Nothing was scored on {task}."
    metric = collection.metrics[task]
    said = ", ".join(f"{method} {score_text(value, metric)}" for method, value in means.items())
    return f"Mean {collection.split} {metric.name} on {task}: {said}; nothing is compared."


def _task(collection: Collection, task: str) -> str:
    """A task with its clients."""
    counts = dict.fromkeys(int(run.summary["num-clients"]) for run in collection.runs if run.task == task)
    return f"{task} ({' or '.join(map(str, counts))} clients)" if counts and "clients" not in task else task


def _counted(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"


def _listed(names: Sequence[str]) -> str:
    if len(names) > FEW:
        names = [*names[: FEW - 1], f"{len(names) - FEW + 1} more"]
    return names[0] if len(names) == 1 else f"{_joined(names[:-1])} and {names[-1]}"


def _joined(names: Sequence[str]) -> str:
    """Names one after another, told apart where one of them has a comma, as labels with settings do."""
    return ("; " if any(", " in name for name in names) else ", ").join(names)
