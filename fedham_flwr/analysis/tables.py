"""The tables of a comparison, in the order in which they are read."""

from __future__ import annotations

from fedham_flwr.analysis import account_tables, result_tables
from fedham_flwr.analysis.cells import Cell, Column, Table
from fedham_flwr.analysis.client_tables import clients
from fedham_flwr.analysis.collection import Collection
from fedham_flwr.analysis.cost_tables import costs
from fedham_flwr.analysis.difference_table import differences
from fedham_flwr.analysis.rank_tables import ranks

__all__ = ["Cell", "Column", "Table", "all_tables"]

MAKERS = (
    result_tables.results,
    differences,
    ranks,
    clients,
    result_tables.novel,
    costs,
    account_tables.tuned,
    account_tables.settings,
    account_tables.failures,
    account_tables.runs,
)


def all_tables(collection: Collection) -> list[Table]:
    """All tables that a comparison has; those without a row are left out.

    Args:
        collection: the runs.
    """
    return [table for make in MAKERS if (table := make(collection)).rows]
