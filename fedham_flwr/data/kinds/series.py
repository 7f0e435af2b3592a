"""Time series: a column of lists [T, C], or windows cut from recordings, rows in the order of time.

Stored are float32 [N, T, C], NaN where a value is missing, and then each client's by its own scaling: mean and standard
deviation of each channel over its training split, which never leave it. Letters: N samples, R rows, T steps, C
channels.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from fedham_flwr.core.errors import UserError
from fedham_flwr.data.columns import Columns, is_number, kind_of_column, named, several
from fedham_flwr.data.data_settings import DataSettings
from fedham_flwr.data.kinds.recordings import cut, read
from fedham_flwr.data.kinds.series_settings import SeriesSettings
from fedham_flwr.data.kinds.table import scale
from fedham_flwr.data.kinds.table_decoding import statistics

if TYPE_CHECKING:
    import datasets

LISTS = ("List", "LargeList", "Sequence")
ARRAYS = ("Array2D",)
log = logging.getLogger("fedham_flwr")

Indices = npt.NDArray[np.int64]
Steps = npt.NDArray[np.float32]


def find(data: datasets.Dataset, columns: Columns, settings: DataSettings) -> list[str]:
    """The columns of a series: one of lists [T, C], or with `series.length` one of lists [T] or several channels.

    Args:
        data: all rows.
        columns: which are asked for; without any, the only column of lists [T, C] is meant.
        settings: of the data.

    Returns:
        Their names; none if the data set is no series.
    """
    if not columns.feature:
        nested = [name for name, kind in data.features.items() if _depth(kind) == 2]
        return nested if len(nested) == 1 else []
    names = [name for name in several(data, columns.feature) if name in data.features]
    if len(names) == 1 and (depth := _depth(data.features[names[0]])):
        return names if depth == 2 or (depth == 1 and settings.series.length) else []
    if settings.series.length and names and all(is_number(data, name) for name in names):
        return several(data, columns.feature)
    return []


def _depth(feature: Any) -> int:
    """Of lists of numbers: 1 of [T], 2 of [T, C]; 0 of all else."""
    if kind_of_column(feature) in ARRAYS:
        return 2
    depth = 0
    while kind_of_column(feature) in LISTS:
        feature, depth = feature.feature, depth + 1
    return depth if depth <= 2 and kind_of_column(feature).startswith(("int", "uint", "float", "bool")) else 0


def recipe_of(data: datasets.Dataset, names: Sequence[str], settings: SeriesSettings) -> dict[str, Any]:
    """How rows become series, for `encode`; length and channels are added when they are known."""
    recipe: dict[str, Any] = {
        "kind": "series",
        "columns": [{"name": name} for name in names],
        "length": settings.length,
    }
    if _depth(data.features[names[0]]):
        return recipe | {"form": "lists"}
    for setting, column in (("series.time", settings.time), ("series.recording", settings.recording)):
        if column:
            named(data, setting, column)
            if column in names:
                raise UserError(f"feature-column names '{column}', which is {setting}; leave it out.")
    if settings.gap and not settings.time:
        raise UserError(f"series.gap={settings.gap:g} needs series.time, the column that says when a row was recorded.")
    how = {"stride": settings.stride or settings.length, "time": settings.time, "gap": settings.gap}
    label = {} if settings.label == "last" else {"label": settings.label}
    return recipe | {"form": "recordings", "recording": settings.recording} | how | label


def decode(data: datasets.Dataset, recipe: Mapping[str, Any], settings: SeriesSettings, folder: Path) -> dict[str, Any]:
    """Write `features.npy`, and what of labels and owners there is for each window; the meta data that go with it.

    Args:
        data: all rows.
        recipe: of `recipe_of`.
        settings: those of series.
        folder: has `labels.npy` and perhaps `owners.npy`, of each row.

    Raises:
        UserError: the rows hold no series.
    """
    if recipe["form"] == "lists":
        values = lists(data, recipe["columns"][0]["name"], recipe["length"])
        channels = [f"{recipe['columns'][0]['name']}[{place}]" for place in range(values.shape[2])]
        if values.shape[2] > values.shape[1] > 1:
            log.warning(
                "series of %d steps have %d channels: if it is the other way round, turn the lists, [time][channel]",
                values.shape[1],
                values.shape[2],
            )
        np.save(folder / "features.npy", values)
        return {"recipe": {**recipe, "length": values.shape[1], "channels": channels}}
    found = read(data, recipe)
    owners = np.load(folder / "owners.npy") if (folder / "owners.npy").exists() else None
    cuts = cut(found, owners, recipe)
    np.save(folder / "features.npy", cuts.values)
    np.save(folder / "spans.npy", cuts.spans)
    np.save(folder / "labels.npy", cuts.labels(np.load(folder / "labels.npy"), settings.label))
    if owners is not None:
        np.save(folder / "owners.npy", cuts.first(owners))
    return {"recipe": {**recipe, "channels": [column["name"] for column in recipe["columns"]]}, "ordered": True}


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


# ---- scaling ---------------------------------------------------------------------------------------------------------


def standardise(values: Steps, clients: Iterable[tuple[Indices, Indices]], folder: Path) -> None:
    """Write all samples, each by its client's scaling: `features.npy`, float32 [N, T, C]; NaN where nobody has one.

    The scaling is written too: `scaling.npy`, float64 [clients, 2, C], means and standard deviations.

    Args:
        values: [N, T, C], NaN where missing.
        clients: for each one the numbers of its samples, and of those of them that are for training.
        folder: exists.
    """
    scaled, scaling = np.full(values.shape, np.nan, dtype=np.float32), []
    for samples, train in clients:
        mean, std = statistics(values[train].reshape(-1, values.shape[2]).astype(np.float64))
        scaled[samples] = scale(values[samples], mean, std)
        scaling.append(np.stack([mean, std]))
    np.save(folder / "features.npy", scaled)
    np.save(folder / "scaling.npy", np.stack(scaling))


def encode(rows: datasets.Dataset, recipe: Mapping[str, Any]) -> Steps:
    """Series as `ClientData.features` has them, float32 [N, T, C].

    Args:
        rows: with the columns that the recipe names; a recording's rows are cut into windows as in training.
        recipe: as `meta.json` has it, with the client's own `scaling`, `mean` and `std` of C numbers each.

    Raises:
        UserError: a column is not there, or holds something else.
    """
    for column in recipe["columns"]:
        named(rows, "the model's feature-column", column["name"])
    if recipe["form"] == "lists":
        column = recipe["columns"][0]["name"]
        if not _depth(rows.features[column]):
            kind = kind_of_column(rows.features[column])
            raise UserError(f"column '{column}' is of kind {kind}, but the model wants lists of numbers.")
        values = lists(rows, column, recipe["length"])
    else:
        values = cut(read(rows, recipe), None, recipe).values
    if values.shape[2] != len(recipe["channels"]):
        name, wanted = recipe["columns"][0]["name"], len(recipe["channels"])
        raise UserError(f"'{name}' has {values.shape[2]} channels, but the model wants {wanted}.")
    mean, std = (np.array(recipe["scaling"][name], dtype=np.float64) for name in ("mean", "std"))
    return scale(values, mean, std)
