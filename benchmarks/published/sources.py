"""What is made of the data sets: the rows of heart disease as FLamby has them, the statistics of MNIST's pixels."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np

HOSPITALS = ("cleveland", "hungarian", "switzerland", "va")
CHEST_PAIN, ELECTROCARDIOGRAM, DISEASE = 2, 6, 13
LEFT_OUT = [10, 11, 12]
"""Columns of UCI's processed.*.data: slope, vessels and thal have too many gaps."""


def hospital(client: int, folder: str = "") -> dict[str, Any]:
    """A hospital's patients, of which 66 % are for training: FLamby's rows, codes, split and standardisation.

    Rows with a gap are left out, which leaves 740 of all; of a code each value but the first is an input.

    Args:
        client: its number among HOSPITALS.
        folder: with UCI's four files processed.*.data.
    """
    import pandas as pd
    from sklearn.model_selection import train_test_split

    file = Path(folder) / f"processed.{HOSPITALS[client]}.data"
    found = pd.read_csv(file, header=None, na_values="?").drop(columns=LEFT_OUT).dropna()
    codes = {CHEST_PAIN: (2, 3, 4), ELECTROCARDIOGRAM: (1, 2)}
    inputs = found.drop(columns=[*codes, DISEASE]).to_numpy(float)
    coded = [found[[column]].to_numpy() == np.array(values) for column, values in codes.items()]
    x, y = np.concatenate([inputs, *coded], axis=1), (found[DISEASE] > 0).to_numpy(int)
    strata = y if np.bincount(y, minlength=2).min() > 2 else None  # Switzerland has one healthy patient
    train, test = train_test_split(
        np.arange(len(y)), test_size=1 - 0.66, train_size=0.66, random_state=43, shuffle=True, stratify=strata
    )
    x = ((x - x[train].mean(0)) / (x[train].std(0, ddof=1) + 1e-9)).astype(np.float32)
    return {"train": (x[train], y[train]), "test": (x[test], y[test]), "classes": ["healthy", "sick"]}


def pixels(folder: Path, target: Path) -> None:
    """Write mean and standard deviation of each pixel of MNIST over all 70,000 digits, in 0..255.

    Args:
        folder: with MNIST as Parquet files.
        target: the file.
    """
    from PIL import Image
    from pyarrow import parquet

    files = sorted(folder.glob("**/*.parquet"))
    images = [image["bytes"] for file in files for image in parquet.read_table(file)["image"].to_pylist()]
    values = np.stack([np.asarray(Image.open(io.BytesIO(image)), np.float32).ravel() for image in images])
    np.savez(target, mean=values.mean(0), std=values.std(0))
