"""How good predictions are, where the data say what is true."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from fedham_flwr.core.errors import UserError
from fedham_flwr.data.new_rows import NewRows
from fedham_flwr.predicting.exported import Exported
from fedham_flwr.training.measurement import Measurement, Scores
from fedham_flwr.training.metric_choice import chosen, faults
from fedham_flwr.training.trainer import EVALUATION_BATCH

if TYPE_CHECKING:
    import datasets


def score(opened: Exported, rows: NewRows, outputs: Tensor, good: Sequence[int], metrics: str = "auto") -> Scores:
    """The scores of predictions, measured as a run measures them.

    Args:
        opened: the model.
        rows: with what is true, in the columns that the model learned; of pictures, their folder's name is their class.
        outputs: of the rows that fit, in their order.
        good: the numbers of these rows.
        metrics: as the setting.

    Raises:
        UserError: the data do not say what is true, or say what the model does not know.
    """
    recipe = opened.recipe
    if recipe.get("label") == "majority":
        raise UserError(
            'series.label of the model is "majority", so that a window\'s truth is that of most of its rows, and a '
            'score here compares with its last row alone: wanted a model of series.label="last"'
        )
    if wrong := faults(metrics, "auto"):
        raise UserError("; ".join(wrong))
    targets = _targets(recipe, rows, good)
    measurement = Measurement(chosen(metrics, recipe["target"], len(recipe["outputs"])), torch.device("cpu"))
    for some, true in zip(*(torch.split(all_of, EVALUATION_BATCH) for all_of in (outputs, targets)), strict=True):
        measurement.add(some, true)
    return measurement.scores()


def _targets(recipe: Mapping[str, Any], rows: NewRows, good: Sequence[int]) -> Tensor:
    columns: list[str] = recipe["labels"]
    if rows.files and not set(columns) & set(rows.data.column_names):
        return _classes([name.rpartition("/")[0].rpartition("/")[2] for name in rows.files], recipe, good, "the folder")
    if missing := [name for name in columns if name not in rows.data.column_names]:
        raise UserError(f"the data have no column {missing[0]!r}, which says what is true: wanted it for a score")
    if not columns:
        raise UserError("the model does not say which column holds what is true, so that nothing can be scored")
    if recipe["target"] == "class":
        return _classes(_values(rows.data, columns[0]), recipe, good, f"column {columns[0]!r}")
    if len(columns) == 1 and recipe["target"] == "multi-label" and recipe["outputs"] != columns:
        return _lists(_values(rows.data, columns[0]), recipe, good, columns[0])
    table = rows.data.select(list(good)).to_pandas()[columns]
    try:
        numbers = table.to_numpy(dtype=np.float32)
    except (TypeError, ValueError) as error:
        raise UserError(f"columns {', '.join(columns)}: {error}; wanted numbers") from error
    found = torch.from_numpy(numbers)
    if recipe["target"] == "multi-label":
        return found.to(torch.uint8)
    return found[:, 0] if len(columns) == 1 else found


def _values(data: datasets.Dataset, column: str) -> list[Any]:
    """The values of a column; of class labels their names."""
    feature = data.features[column]
    inner = getattr(feature, "feature", feature)
    names = getattr(inner, "names", None)
    values: list[Any] = data.select_columns([column]).with_format("arrow")[:].column(column).to_pylist()
    if names is None:
        return values
    if inner is feature:
        return [None if value is None else names[value] for value in values]
    return [None if row is None else [names[value] for value in row] for row in values]


def _place(value: Any, places: Mapping[str, int], row: int, where: str) -> int:
    """The number of a class; whole floats are those of whole numbers, as a reader gives them where others are missing.

    Raises:
        UserError: the model does not know it.
    """
    text = str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)
    if text not in places:
        raise UserError(f"{where} has {value!r} in row {row + 1}, and the classes of the model are {', '.join(places)}")
    return places[text]


def _classes(values: Sequence[Any], recipe: Mapping[str, Any], good: Sequence[int], where: str) -> Tensor:
    places = {name: place for place, name in enumerate(recipe["outputs"])}
    return torch.tensor([_place(values[row], places, row, where) for row in good])


def _lists(values: Sequence[Any], recipe: Mapping[str, Any], good: Sequence[int], column: str) -> Tensor:
    places = {name: place for place, name in enumerate(recipe["outputs"])}
    found = torch.zeros(len(good), len(places), dtype=torch.uint8)
    for number, row in enumerate(good):
        for value in values[row] or ():
            found[number, _place(value, places, row, f"column {column!r}")] = 1
    return found
