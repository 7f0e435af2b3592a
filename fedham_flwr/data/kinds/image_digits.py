"""scikit-learn's 1797 hand-written digits, 8x8 grey, from 0..16 to 0..255, as a data set of images."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from fedham_flwr.core.errors import UserError
from fedham_flwr.data.columns import Columns
from fedham_flwr.data.kinds.image import recipe_of, resized
from fedham_flwr.data.kinds.image_pixels import ImageSettings


def decode_digits(columns: Columns, folder: Path, side: int, pictures: ImageSettings) -> None:
    """Write the digits into a folder of the cache.

    Args:
        columns: which columns are what, as the settings say.
        folder: exists.
        side: the setting image-size.
        pictures: how images are resized.

    Raises:
        UserError: the settings name a column that the digits don't have, or another target.
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
    channels = 3 if pictures.channels == "rgb" else 1
    np.save(folder / "features.npy", resized(pixels, side, pictures.resize)[..., None].repeat(channels, axis=-1))
    np.save(folder / "labels.npy", digits.target.astype(np.int64))
    recipe = recipe_of("image", (side or 8, side or 8, channels), side, pictures)
    (folder / "meta.json").write_text(
        json.dumps({"classes": [str(i) for i in range(10)], "kind": "image", "recipe": recipe})
    )
