"""scikit-learn's 1797 hand-written digits, the data set that comes with the package."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from fedham_flwr.core.errors import UserError
from fedham_flwr.data.columns import Columns
from fedham_flwr.data.kinds import image as images


def decode(columns: Columns, folder: Path, side: int) -> None:
    """Write them, 8x8 grey, from 0..16 to 0..255.

    Args:
        columns: which columns are what.
        folder: exists.
        side: as for images.

    Raises:
        UserError: a column is named that they do not have, or a target.
    """
    from sklearn.datasets import load_digits

    for setting, wanted, actual in (("feature", columns.feature, "image"), ("label", columns.label, "label")):
        if wanted not in ("", actual):
            raise UserError(f"{setting}-column is '{wanted}', but the digits have only the columns image and label.")
    if columns.client:
        raise UserError(f"client-column is '{columns.client}', but the digits have only the columns image and label.")
    if columns.target not in ("auto", "class"):
        raise UserError(f"target is '{columns.target}', but the digits have one label each; wanted class.")
    digits = load_digits()
    pixels = np.rint(digits.images * (255 / 16)).astype(np.uint8)
    np.save(folder / "features.npy", images.resized(pixels, side)[..., None])
    np.save(folder / "labels.npy", digits.target.astype(np.int64))
    (folder / "meta.json").write_text(json.dumps({"classes": [str(i) for i in range(10)], "kind": "image"}))
