"""What a study leaves to be read: its tables and its page, made of the runs that are complete."""

from __future__ import annotations

from pathlib import Path

from fedham_flwr.core.errors import UnwritableError, UserError, reason

TABLES, PAGE = "tables", "report.html"


def write_results(folder: Path) -> list[str]:
    """Write the tables and the page of a study.

    Args:
        folder: of the study. Of one without a complete report run nothing is written.

    Returns:
        What to say: where they are, and why one of them is not.

    Raises:
        UnwritableError: they cannot be written.
    """
    from fedham_flwr.analysis.collection import of_study
    from fedham_flwr.analysis.writing import write_tables
    from fedham_flwr.page.write import write_report

    collection = of_study(folder)
    if not collection.runs:
        return []
    try:
        write_tables(collection, folder / TABLES)
        said = [f"tables: {folder / TABLES}"]
        try:
            said.append(f"page: {write_report(collection, folder / PAGE)}")
        except UserError as error:
            said.append(f"there is no page: {error}")
    except OSError as error:
        raise UnwritableError(f"the study cannot be written to {folder}: {reason(error)}") from error
    return said
