"""Time series: a column of lists [T, C], or windows cut from recordings, rows in the order of time.

Stored are float32 [N, T, C], NaN where a value is missing, and then each client's by its own scaling: mean and standard
deviation of each channel over its training split, which never leave it. Letters: N samples, R rows, T steps, C
channels.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from fedham_flwr.core.errors import UserError
from fedham_flwr.data.column_values import kind_of_texts, mostly_numbers
from fedham_flwr.data.columns import Columns, is_number, kind_of_column, named, several
from fedham_flwr.data.data_settings import DataSettings
from fedham_flwr.data.kinds.recordings import Windows, cut, read
from fedham_flwr.data.kinds.series_lists import Steps, lists
from fedham_flwr.data.kinds.series_settings import SeriesSettings
from fedham_flwr.data.kinds.table import scale
from fedham_flwr.data.kinds.table_decoding import statistics
from fedham_flwr.data.kinds.table_kinds import decimal_signs
from fedham_flwr.data.kinds.table_settings import TableSettings
from fedham_flwr.data.row_hashes import FILE, RECORDINGS, text_hashes

if TYPE_CHECKING:
    import datasets

LISTS = ("List", "LargeList", "Sequence")
ARRAYS = ("Array2D",)
log = logging.getLogger("fedham_flwr")

Indices = npt.NDArray[np.int64]


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
    names = several(data, columns.feature)
    if any(name not in data.features for name in names):
        return []  # which one is said by those who look after this
    if len(names) == 1 and (depth := _depth(data.features[names[0]])):
        return names if depth == 2 or (depth == 1 and settings.series.length) else []
    missing = settings.table.missing.split()
    # If one is a channel, all are meant to be: what is wrong in another is said when they are read.
    return names if settings.series.length and any(_is_channel(data, name, missing) for name in names) else []


def _is_channel(data: datasets.Dataset, name: str, missing: Sequence[str]) -> bool:
    """Whether a column holds numbers, or texts most of which are."""
    if not kind_of_column(data.features[name]).endswith("string"):
        return is_number(data, name)
    return kind_of_texts(data, name, missing) == "number" or mostly_numbers(data, name)


def _depth(feature: Any) -> int:
    """Of lists of numbers: 1 of [T], 2 of [T, C]; 0 of all else."""
    if kind_of_column(feature) in ARRAYS:
        return 2
    depth = 0
    while kind_of_column(feature) in LISTS:
        feature, depth = feature.feature, depth + 1
    return depth if depth <= 2 and kind_of_column(feature).startswith(("int", "uint", "float", "bool")) else 0


def recipe_of(
    data: datasets.Dataset, names: Sequence[str], settings: SeriesSettings, table: TableSettings
) -> dict[str, Any]:
    """How rows become series, for `encode`; length and channels are added when they are known.

    Args:
        data: all rows.
        names: of the columns that are samples.
        settings: those of series.
        table: how texts are read.

    Raises:
        UserError: settings do not go together.
    """
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
    cuts: dict[str, Any] = {"stride": settings.stride or settings.length, "time": settings.time, "gap": settings.gap}
    comma = not table.decimal and any(sign == "," for *_, sign in decimal_signs(data, table))
    columns = [{"name": name, "decimal": ","} if comma else {"name": name} for name in names]
    written = {"decimal": table.decimal, "missing": table.missing.split()}
    cuts |= {"columns": columns} | {name: said for name, said in written.items() if said}
    label = {} if settings.label == "last" else {"label": settings.label}
    return recipe | {"form": "recordings", "recording": settings.recording} | cuts | label


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
        usual = SeriesSettings(length=settings.length)
        idle = [f"series.{name}" for name, said in asdict(settings).items() if said != getattr(usual, name)]
        notes = [f"without effect, since each row is a window already: {', '.join(idle)}"] if idle else []
        return {"recipe": {**recipe, "length": values.shape[1], "channels": channels}, "notes": notes}
    found = read(data, recipe)
    owners = np.load(folder / "owners.npy") if (folder / "owners.npy").exists() else None
    cuts = cut(found, owners, recipe)
    np.save(folder / "features.npy", cuts.values)
    np.save(folder / "spans.npy", cuts.spans)
    whose = cuts.first(found.recording)
    np.save(folder / RECORDINGS, text_hashes(found.names)[whose])
    (folder / FILE).unlink(missing_ok=True)  # it is of rows
    np.save(folder / "labels.npy", cuts.labels(np.load(folder / "labels.npy"), settings.label))
    if owners is not None:
        np.save(folder / "owners.npy", cuts.first(owners))
    return {"recipe": {**recipe, "channels": [column["name"] for column in recipe["columns"]]}, "ordered": True}


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
    _check_columns(rows, recipe)
    if recipe["form"] == "recordings":
        return encode_recordings(rows, recipe)[0]
    column = recipe["columns"][0]["name"]
    if not _depth(rows.features[column]):
        kind = kind_of_column(rows.features[column])
        raise UserError(f"column '{column}' is of kind {kind}, but the model wants lists of numbers.")
    values, wanted = lists(rows, column, recipe["length"]), len(recipe["channels"])
    if values.shape[2] != wanted:
        raise UserError(f"'{column}' has {values.shape[2]} channels, but the model wants {wanted}.")
    return _scaled(values, recipe)


def encode_recordings(rows: datasets.Dataset, recipe: Mapping[str, Any]) -> tuple[Steps, Windows]:
    """As `encode`, and the windows that the samples are.

    Args:
        rows: those of recordings.
        recipe: as for `encode`.

    Raises:
        UserError: as `encode`.
    """
    _check_columns(rows, recipe)
    windows = cut(read(rows, recipe), None, recipe)
    return _scaled(windows.values, recipe), windows


def _check_columns(rows: datasets.Dataset, recipe: Mapping[str, Any]) -> None:
    for column in recipe["columns"]:
        named(rows, "the model's feature-column", column["name"])
    for what in ("recording", "time"):
        if recipe.get(what):
            named(rows, f"the model's series.{what}", recipe[what])


def _scaled(values: Steps, recipe: Mapping[str, Any]) -> Steps:
    mean, std = (np.array(recipe["scaling"][name], dtype=np.float64) for name in ("mean", "std"))
    return scale(values, mean, std)
