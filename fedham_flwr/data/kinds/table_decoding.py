"""Tables: columns of numbers, with gaps -> one array, and each client's rows by its own scaling.

Two steps, each kept in the cache. `decode` depends on the source and its columns alone: float32 [N, F], NaN where a
value is missing. `standardise` depends on who has what: each client's rows by the mean and the standard deviation of
its own training split, so that nothing about data leaves it, as in FLamby (du Terrail et al., NeurIPS 2022).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from fedham_flwr.core.errors import UserError
from fedham_flwr.data.kinds.table import Column, Indices, Numbers, narrow, scale, spread

if TYPE_CHECKING:
    import datasets


def check_classes(path: str, classes: Sequence[str], declared: bool) -> None:
    """At a node that has data of its own, a class must not depend on which others it has.

    Args:
        path: of its data.
        classes: their names.
        declared: by the schema, not found among the rows.

    Raises:
        UserError: they were found, and are neither 0, 1, ... without a gap nor both truth values.
    """
    if not declared and list(classes) not in ([str(i) for i in range(len(classes))], ["False", "True"]):
        raise UserError(
            f"the label-column of {path} holds {', '.join(classes[:10])}, whose class numbers would depend on which of "
            "them this client has: make it a class label (datasets.ClassLabel) with the same names at all clients, or "
            "0, 1, ... without a gap."
        )


# ---- decoding --------------------------------------------------------------------------------------------------------


def decode(data: datasets.Dataset, names: Sequence[str], path: Path) -> list[Column]:
    """Write float32 [N, F], NaN where a value is missing, to a .npy file.

    Args:
        data: all rows.
        names: its columns, of numbers or class labels.
        path: to write to.

    Raises:
        UserError: a value is infinite as a 32-bit float, or a class label that the schema doesn't name.
    """
    table = data.select_columns(list(names)).with_format("arrow")[:]
    columns = [Column(name, tuple(getattr(data.features[name], "names", ()))) for name in names]
    decoded = [narrow(spread(_numbers(table.column(c.name)), c), c) for c in columns]
    np.save(path, np.concatenate(decoded, axis=1))
    return columns


def _numbers(column: Any) -> Numbers:
    """The numbers of a column of an Arrow table, NaN for null."""
    import pyarrow as pa
    import pyarrow.compute as pc

    whole = pc.cast(column.combine_chunks(), pa.float64(), safe=False)
    numbers: Numbers = pc.fill_null(whole, float("nan")).to_numpy(zero_copy_only=False)
    return numbers


# ---- scaling ---------------------------------------------------------------------------------------------------------


def standardise(values: npt.NDArray[np.float32], clients: Iterable[tuple[Indices, Indices]], folder: Path) -> None:
    """Write all rows, each by its client's scaling: `features.npy`, float32 [N, F]; NaN where nobody has the row.

    The scaling is written too: `scaling.npy`, float64 [clients, 2, F], means and standard deviations.

    Args:
        values: [N, F], NaN where missing.
        clients: for each one the numbers of its rows, and of those of them that are for training.
        folder: exists.
    """
    scaled, scaling = np.full(values.shape, np.nan, dtype=np.float32), []
    for rows, train in clients:
        mean, std = statistics(values[train].astype(np.float64))
        scaled[rows] = scale(values[rows], mean, std)
        scaling.append(np.stack([mean, std]))
    np.save(folder / "features.npy", scaled)
    np.save(folder / "scaling.npy", np.stack(scaling))


def statistics(values: Numbers) -> tuple[Numbers, Numbers]:
    """Mean and standard deviation of what is there in each column, [F] each.

    Args:
        values: [n, F], NaN where missing. A column that is constant has standard deviation 1, and mean 0 if it is
            missing altogether.
    """
    there = ~np.isnan(values)
    count = np.maximum(there.sum(axis=0), 1)
    mean = np.where(there, values, 0.0).sum(axis=0) / count
    std = np.sqrt((np.where(there, values - mean, 0.0) ** 2).sum(axis=0) / count)
    low = np.where(there, values, np.inf).min(axis=0, initial=np.inf)
    high = np.where(there, values, -np.inf).max(axis=0, initial=-np.inf)
    # Told by the values themselves: the mean of equal numbers may be off by a bit, and the deviation not 0 then.
    return np.where(low == high, low, mean), np.where(low < high, std, 1.0)
