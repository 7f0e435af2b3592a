"""Encoders of today's kinds of data, until each kind has its own."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from fedham_flwr.data.kinds import image as images
from fedham_flwr.data.kinds import table as tables

if TYPE_CHECKING:
    import datasets


def encode_images(rows: datasets.Dataset, recipe: Mapping[str, Any]) -> npt.NDArray[np.uint8]:
    """Pictures."""
    with tempfile.TemporaryDirectory() as folder:
        images.decode(rows, "image", Path(folder) / "x.npy", int(recipe.get("side", 0)))
        found: npt.NDArray[np.uint8] = np.load(Path(folder) / "x.npy")
    return found


def encode_table(rows: datasets.Dataset, recipe: Mapping[str, Any]) -> npt.NDArray[np.float32]:
    """Rows of a table."""
    scaling = recipe["scaling"]
    columns = tables.columns_of(recipe["columns"])
    made = tables.Scaling(columns, tuple(scaling["mean"]), tuple(scaling["std"]))
    inputs = made.inputs(rows.to_pandas())
    found = inputs[:, 0].numpy().copy()
    found[inputs[:, 1].numpy() == 1] = np.nan
    return found
