"""The words that one site has in the columns that no schema declares, for the sites to agree upon."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import replace

from fedham_flwr.data.columns import Columns, table_columns
from fedham_flwr.data.data_settings import DataSettings
from fedham_flwr.data.schema import read_schema
from fedham_flwr.data.sources import load


def own_words(settings: DataSettings, path: str) -> dict[str, Sequence[str]]:
    """Column -> its words, sorted; of columns of words alone.

    Args:
        settings: which columns are what, and how texts are read.
        path: of the site's data.

    Raises:
        UserError: they can't be read, or have no such columns.
    """
    from fedham_flwr.data.kinds.table_kinds import columns_of_table

    schema = read_schema(settings.table.schema)
    declared = schema.columns if schema else ()
    columns = Columns(settings.feature_column, settings.label_column, "", settings.target)
    with tempfile.TemporaryDirectory() as copy:
        data = load(path, copy, settings.table)
        names = table_columns(data, columns, [column.name for column in declared])
        found = columns_of_table(data, names, replace(settings.table, categories="found"), declared)
    by_schema = {column.name for column in declared}
    return {each.name: each.names for each in found if each.kind == "category" and each.name not in by_schema}
