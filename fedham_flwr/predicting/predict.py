"""Predictions of new rows by an exported model."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
from torch import Tensor

from fedham_flwr.core.errors import UserError
from fedham_flwr.data import recipes
from fedham_flwr.data.new_rows import NewRows, as_array, open_rows
from fedham_flwr.predicting.exported import Exported
from fedham_flwr.predicting.frames import frame_of
from fedham_flwr.training.trainer import EVALUATION_BATCH

if TYPE_CHECKING:
    import datasets
    import pandas

log = logging.getLogger("fedham_flwr")

BadRows = Literal["refuse", "leave-empty"]
MOST_BAD = 1000
"""Rows that may be left empty: beyond, the data are others than the model's."""


class Predicted(NamedTuple):
    """What came of new rows.

    Attributes:
        frame: a prediction in a row.
        outputs: of the network, of the rows that fit.
        good: the numbers of these rows, from 0.
        faults: the numbers of the others, each with what is wrong with the first.
    """

    frame: pandas.DataFrame
    outputs: Tensor
    good: Sequence[int]
    faults: Sequence[tuple[int, str]]


def predict(
    model: str | Path,
    data: Any,
    *,
    client: str = "",
    probabilities: bool = False,
    id_column: str = "",
    bad_rows: BadRows = "refuse",
    device: str = "auto",
    batch_size: int = EVALUATION_BATCH,
    trust_imports: bool = False,
) -> pandas.DataFrame:
    """Predictions of new rows, one for each, in their order.

    Args:
        model: `<run>/model/<client>.safetensors`, or the directory of a run and `client`.
        data: path of a file (CSV, Parquet, JSON, text), of a folder of pictures or of a picture, or a
            pandas.DataFrame; columns that the model does not need are passed over. Of a model whose data a function of
            a user's loaded: an array of inputs as that function gives them, or a file `.npy` of it.
        client: of a run: its id or its name.
        probabilities: whether there is a column `p(<class>)` for each class.
        id_column: a column of the data that goes along.
        bad_rows: whether a row that does not fit is refused, or has an empty prediction.
        device: as the setting: auto, cpu, cuda.
        batch_size: samples at a time.
        trust_imports: as of `load_model`.

    Returns:
        Of each row its number from 1, or its file; the id; the prediction: a class and its probability, a value (of
        several a column each), or the labels whose probability is above 0.5, with `; ` between.

    Raises:
        UserError: the file is no model with a recipe, or a row does not fit.
    """
    opened = Exported.open(model, client=client, trust_imports=trust_imports)
    if (array := as_array(data)) is not None:
        return of_array(opened, array, probabilities, device, batch_size).frame
    with open_rows(data, opened.recipe) as rows:
        return of_rows(opened, rows, probabilities, id_column, bad_rows, device, batch_size).frame


def of_array(opened: Exported, array: Any, probabilities: bool, device: str, batch_size: int) -> Predicted:
    """Predictions of inputs as a user's own function gives them; arguments as for `predict`."""
    if opened.recipe["kind"] != recipes.OWN:
        raise UserError(f"{opened.path} is for rows of the kind {opened.recipe['kind']}, and given is an array")
    array = array if array.dtype == np.uint8 else array.astype(np.float32)
    outputs = opened.outputs(array, device, _checked(batch_size))
    frame = frame_of(outputs, opened.recipe, {"row": range(1, len(array) + 1)}, range(len(array)), probabilities)
    return Predicted(frame, outputs, range(len(array)), ())


def of_rows(
    opened: Exported,
    rows: NewRows,
    probabilities: bool = False,
    id_column: str = "",
    bad_rows: BadRows = "refuse",
    device: str = "auto",
    batch_size: int = EVALUATION_BATCH,
) -> Predicted:
    """Predictions of rows that are open; arguments as for `predict`."""
    if opened.recipe["target"] == "next-token":
        raise UserError(
            f"{opened.path} predicts the next character of a text, of which there is none for a row as a whole: wanted "
            "a model of classes, labels or values"
        )
    first = _first(rows, id_column)
    if opened.recipe.get("form") == "recordings":
        return _of_windows(opened, rows, first, probabilities, device, batch_size)
    faults: list[tuple[int, str]] = []
    if bad_rows == "refuse":
        features, good = recipes.encode(rows.data, opened.recipe), list(range(len(rows.data)))
    else:
        recipe = recipes.settled(rows.data, opened.recipe)
        with _unsaid() as notes:
            parts = list(_fitting(rows.data, recipe, 0, faults))
        if not parts:
            raise UserError(f"none of {len(rows.data)} rows fits the model of {opened.path}: {faults[0][1]}")
        features = np.concatenate([part for _, part in parts])
        good = [row for start, part in parts for row in range(start, start + len(part))]
        if notes and faults:  # each part has said its own: once more, of all rows that fit
            recipes.encode(rows.data.select(good), recipe)
        for record in () if faults else notes:
            log.handle(record)
    outputs = opened.outputs(features, device, _checked(batch_size))
    frame = frame_of(outputs, opened.recipe, first, good, probabilities)
    return Predicted(frame, outputs, good, faults)


def _first(rows: NewRows, id_column: str) -> dict[str, Sequence[Any]]:
    """The columns that say which row is which."""
    first: dict[str, Sequence[Any]] = {"file": rows.files} if rows.files else {"row": range(1, len(rows.data) + 1)}
    if id_column:
        if id_column not in rows.data.column_names:
            raise UserError(f"id column {id_column!r}: the columns are {', '.join(rows.data.column_names)}")
        first[id_column] = rows.data.select_columns([id_column]).with_format("arrow")[:].column(id_column).to_pylist()
    return first


def _of_windows(
    opened: Exported,
    rows: NewRows,
    first: Mapping[str, Sequence[Any]],
    probabilities: bool,
    device: str,
    batch_size: int,
) -> Predicted:
    """A prediction for each window of recordings, which the rows make together; it goes to the window's last row."""
    from fedham_flwr.data.kinds.series import encode_recordings

    features, windows = encode_recordings(rows.data, opened.recipe)
    ends = windows.spans[:, 1] + windows.values.shape[1] - 1
    last = windows.order[ends]
    turn = np.argsort(last, kind="stable")
    outputs = opened.outputs(features[turn], device, _checked(batch_size))
    good = last[turn].tolist()
    told = {name: [values[row] for row in good] for name, values in first.items()}
    frame = frame_of(outputs, opened.recipe, told, range(len(good)), probabilities)
    return Predicted(frame, outputs, good, ())


@contextlib.contextmanager
def _unsaid() -> Iterator[list[logging.LogRecord]]:
    """Keep what is logged for later."""
    kept: list[logging.LogRecord] = []

    def keep(record: logging.LogRecord) -> bool:
        kept.append(record)
        return False

    log.addFilter(keep)
    try:
        yield kept
    finally:
        log.removeFilter(keep)


def _fitting(
    data: datasets.Dataset, recipe: Mapping[str, Any], start: int, faults: list[tuple[int, str]], said: str = ""
) -> Iterator[tuple[int, np.ndarray[Any, Any]]]:
    """The stored features of runs of rows that fit, each with the number of its first row; halves of what does not."""
    try:
        yield start, recipes.encode(data, recipe)
    except UserError as error:
        said = said or str(error)  # that of all rows knows their lines
        if len(data) == 1:
            faults.append((start, said))
            if len(faults) > MOST_BAD:
                raise UserError(f"more than {MOST_BAD} rows do not fit: {faults[0][1]}") from error
            return
        half = len(data) // 2
        yield from _fitting(data.select(range(half)), recipe, start, faults, said)
        yield from _fitting(data.select(range(half, len(data))), recipe, start + half, faults, said)


def _checked(batch_size: int) -> int:
    if batch_size < 1:
        raise UserError(f"batch-size {batch_size} must be above 0")
    return batch_size
