"""What rows of several tables begin with, and units where tasks have different metrics."""

from __future__ import annotations

from dataclasses import replace

from fedham_flwr.analysis.cells import Cell, Column
from fedham_flwr.analysis.collection import Collection


def method_cell(collection: Collection, method: str) -> Cell:
    """The first cell of a row.

    Args:
        collection: the runs.
        method: its label.
    """
    return Cell(method, marks=frozenset({"floor"}) if method in collection.floors else frozenset())


def task_columns(collection: Collection) -> list[Column]:
    """The column of tasks, where there are several."""
    return [Column("task", "text")] if len(collection.tasks) > 1 else []


def task_cells(collection: Collection, task: str) -> list[Cell]:
    """What is under `task_columns`.

    Args:
        collection: the runs.
        task: its label.
    """
    return [Cell(task)] if len(collection.tasks) > 1 else []


def unit_of(collection: Collection) -> str:
    """The unit of a column of scores: % if those of all tasks are fractions.

    Args:
        collection: the runs.
    """
    return "%" if all(metric.bounded for metric in collection.metrics.values()) else ""


def with_unit(collection: Collection, task: str, cell: Cell, unit: str = "%") -> Cell:
    """A cell of a score that says itself that it is in percent, where its column has scores of other kinds too.

    Args:
        collection: the runs.
        task: that the score is of.
        cell: of the score.
        unit: of the text of a score that is a fraction.
    """
    if cell.value is None or unit_of(collection) or not collection.metrics[task].bounded:
        return cell
    return replace(cell, text=f"{cell.text} {unit}")
