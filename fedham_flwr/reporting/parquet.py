"""Parquet files that a run left, read one by one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from fedham_flwr.core.errors import UserError, cause

if TYPE_CHECKING:
    import pyarrow


def read_part(part: Path) -> pyarrow.Table:
    """The rows of one file.

    Args:
        part: its path.

    Raises:
        UserError: it is damaged.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        # Not read_table, which takes a folder named a=b on the way as a column.
        return pq.ParquetFile(part).read()
    except pa.ArrowInvalid as error:
        raise UserError(f"{part} cannot be read: {cause(error)}; wanted a Parquet file that a run left") from error
