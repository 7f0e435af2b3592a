"""Series out of a column of lists, each of T steps with C channels.

Letters: N samples, T steps, C channels.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from fedham_flwr.core.errors import UserError

if TYPE_CHECKING:
    import datasets

Indices = npt.NDArray[np.int64]
Steps = npt.NDArray[np.float32]


def lists(data: datasets.Dataset, column: str, length: int) -> Steps:
    """float32 [N, T, C] of a column of lists.

    Args:
        data: all rows.
        column: of lists [T, C], or [T] of one channel.
        length: T, to which longer ones are cut, and others are filled up by missing values; 0: all are of one length.

    Raises:
        UserError: a row has no list, one of another length, or an infinite value.
    """
    import pyarrow.compute as pc

    rows = data.select_columns([column]).with_format("arrow")[:].column(column).combine_chunks()
    rows = getattr(rows, "storage", rows)
    if rows.null_count:
        raise UserError(f"feature-column '{column}' has {rows.null_count} empty rows, but every row needs a list.")
    sizes = pc.list_value_length(rows).to_numpy(zero_copy_only=False).astype(np.int64)
    steps = _steps(rows.flatten(), column, np.repeat(np.arange(len(rows)), sizes))
    if not length and (other := sizes != sizes[0]).any():
        row = int(other.argmax())
        raise UserError(
            f"row {row} of '{column}' has {sizes[row]} steps, but row 0 has {sizes[0]}: set series.length, the steps "
            "of all: longer ones are cut, shorter ones filled up as missing."
        )
    length = length or int(sizes[0])
    if not length:
        raise UserError(f"row 0 of '{column}' is an empty list; wanted numbers.")
    place = np.arange(len(steps)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    kept = place < length
    values = np.full((len(sizes), length, steps.shape[1]), np.nan, dtype=np.float32)
    values[np.repeat(np.arange(len(sizes)), sizes)[kept], place[kept]] = steps[kept]
    return values


def _steps(column: Any, name: str, rows: Indices) -> Steps:
    """[sum of T, C]: the values of all steps, of which `rows` says whose they are."""
    import pyarrow as pa
    import pyarrow.compute as pc

    there, channels = np.ones(len(column), dtype=bool), 1
    inner = column
    if pa.types.is_list(column.type) or pa.types.is_large_list(column.type) or pa.types.is_fixed_size_list(column.type):
        there = column.is_valid().to_numpy(zero_copy_only=False)
        widths = pc.list_value_length(column).to_numpy(zero_copy_only=False)[there].astype(np.int64)
        channels = int(widths[0]) if len(widths) else 0
        if (other := widths != channels).any():
            row = int(rows[there][int(other.argmax())])
            raise UserError(
                f"row {row} of '{name}' has a step of {int(widths[other][0])} channels, but the first step has "
                f"{channels}: all steps must have the same."
            )
        if not channels:
            raise UserError(f"feature-column '{name}' has steps without any channel; wanted numbers.")
        inner = column.flatten()
    numbers = pc.fill_null(pc.cast(inner, pa.float64(), safe=False), float("nan")).to_numpy(zero_copy_only=False)
    values = np.full((len(column), channels), np.nan, dtype=np.float32)
    with np.errstate(over="ignore"):
        values[there] = numbers.reshape(-1, channels)
    if (infinite := np.isinf(values).any(axis=1)).any():
        raise UserError(f"row {int(rows[int(infinite.argmax())])} of '{name}' holds an infinite value: leave it empty.")
    return values
