"""The tables of a comparison."""

from __future__ import annotations

from fedham_flwr.analysis.cells import Cell, Column, Table
from fedham_flwr.analysis.collection import Collection

__all__ = ["Cell", "Column", "Table", "all_tables"]


def all_tables(collection: Collection) -> list[Table]:
    """All tables that a comparison has, those without a row left out.

    Args:
        collection: the runs.
    """
    raise NotImplementedError(collection.title)
