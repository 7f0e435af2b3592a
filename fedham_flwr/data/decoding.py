"""A source decoded into plain arrays, once, into a folder with a `meta.json`, which names its kind.

Images have `features.npy` (uint8 [N, H, W, C]), `labels.npy` (int64 [N]) and, with a client column, `owners.npy`
(int64 [N]). Tables too, but with float32 [N, F] features, NaN where a value is missing; texts have what `texts.join`
writes. scikit-learn and Pillow are imported by the functions that decode.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from fedham_flwr.core.errors import UserError
from fedham_flwr.data import targets
from fedham_flwr.data.columns import (
    Columns,
    codes_of,
    find_feature,
    find_label,
    find_label_of_table,
    kind_of_column,
    label_codes,
    named,
    table_columns,
    values_of,
)
from fedham_flwr.data.kinds import image as images
from fedham_flwr.data.kinds import table_decoding
from fedham_flwr.data.kinds import text as texts
from fedham_flwr.data.kinds.image_pixels import AS_USUAL, ImageSettings
from fedham_flwr.data.sources import load

if TYPE_CHECKING:
    import datasets


def decode(source: str, columns: Columns, folder: Path, side: int = 0, pictures: ImageSettings = AS_USUAL) -> None:
    """Write the arrays and the meta data of a source into this folder, which exists and is empty.

    Args:
        source: the `dataset` setting.
        columns: which columns are what.
        folder: where.
        side: pixels of the square that images are resized to; 0: they stay as they are.
        pictures: how images are resized, and what becomes of those that can't be read.

    Raises:
        UserError: the source can't be read or reached, or its columns aren't what is needed.
        OSError: the folder can't be written.
    """
    if source == "digits":
        _decode_digits(columns, folder, side, pictures)
        return
    # The library writes a copy of the files it reads; of a local source it isn't needed for longer than decoding takes.
    with tempfile.TemporaryDirectory(dir=folder) as copy:
        _decode_rows(load(source, copy), columns, folder, side, pictures)


def _decode_rows(data: datasets.Dataset, columns: Columns, folder: Path, side: int, pictures: ImageSettings) -> None:
    table = table_columns(data, columns)
    feature = "" if table else find_feature(data, columns)
    image = bool(feature) and kind_of_column(data.features[feature]) == "Image"
    if side and not image:
        raise UserError(
            f"image-size={side} resizes images, and the data set is {'a table' if table else 'text'}: set 0."
        )
    if table:
        meta = _decode_table(data, table, columns, folder)
    elif image:
        meta = _decode_images(data, feature, columns, folder, side, pictures)
    else:
        meta = _decode_texts(data, feature, columns, folder)
    (folder / "meta.json").write_text(json.dumps(meta))


def _decode_digits(columns: Columns, folder: Path, side: int, pictures: ImageSettings) -> None:
    """scikit-learn's 1797 hand-written digits, 8x8 grey, from 0..16 to 0..255."""
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
    np.save(folder / "features.npy", images.resized(pixels, side, pictures.resize)[..., None])
    np.save(folder / "labels.npy", digits.target.astype(np.int64))
    recipe = images.recipe_of("image", (side or 8, side or 8, 1), side, pictures)
    (folder / "meta.json").write_text(
        json.dumps({"classes": [str(i) for i in range(10)], "kind": "image", "recipe": recipe})
    )


# ---- kinds of data: what writes the folder and returns its meta data ------------------------------------------------


def _decode_images(
    data: datasets.Dataset, feature: str, columns: Columns, folder: Path, side: int, pictures: ImageSettings
) -> dict[str, Any]:
    targets.check(columns, "images")
    label = "" if columns.target in targets.CLASSLESS else find_label(data, columns.label)
    decoded = images.decode(data, feature, folder / "features.npy", side, pictures)
    if len(decoded.kept) < len(data):
        data = data.select(decoded.kept)
    if columns.target in targets.CLASSLESS:
        meta = targets.decode(data, columns, (), folder) | _write_owners(data, columns, folder)
    else:
        meta = _decode_labels(data, label, columns, folder)
    return meta | {"kind": "image", "recipe": decoded.recipe}


def _decode_table(data: datasets.Dataset, table: Sequence[str], columns: Columns, folder: Path) -> dict[str, Any]:
    targets.check(columns, "a table")
    if columns.target in targets.CLASSLESS:
        meta = targets.decode(data, columns, table, folder) | _write_owners(data, columns, folder)
    else:
        label = find_label_of_table(data, columns, table)
        meta = _decode_labels(data, label, columns, folder)
        meta["declared"] = kind_of_column(data.features[label]) == "ClassLabel"
    decoded = table_decoding.decode(data, table, folder / "features.npy")
    return meta | {"kind": "table", "columns": [asdict(column) for column in decoded]}


def _decode_labels(data: datasets.Dataset, label: str, columns: Columns, folder: Path) -> dict[str, Any]:
    """Write whose each row is and its class; the meta data that go with them."""
    labels, classes = label_codes(data, label)
    np.save(folder / "labels.npy", labels)
    return {"classes": classes} | _write_owners(data, columns, folder)


def _write_owners(data: datasets.Dataset, columns: Columns, folder: Path) -> dict[str, Any]:
    owners, names = _owners(data, columns.client)
    if owners is not None:
        np.save(folder / "owners.npy", owners)
    return dict(names)


def _decode_texts(data: datasets.Dataset, feature: str, columns: Columns, folder: Path) -> dict[str, Any]:
    targets.check(columns, "texts")
    if columns.label:
        raise UserError(
            f"label-column is '{columns.label}', but of the texts in '{feature}' the next character is predicted, "
            "which takes no labels; leave label-column empty."
        )
    owners, names = _owners(data, columns.client)
    characters = texts.join(values_of(data, feature, "feature-column"), owners, folder)
    return {"kind": "text", "characters": characters} | names


def _owners(data: datasets.Dataset, column: str) -> tuple[npt.NDArray[np.int64] | None, dict[str, list[str]]]:
    """Whose each row is and the owners' names, if there is a client column."""
    if not column:
        return None, {}
    owners, names = codes_of(data, named(data, "client-column", column), "client-column")
    return owners, {"owners": names}
