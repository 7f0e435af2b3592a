"""Data as the programs have them that the figures are of: the same rows, the same split, the same scaling."""

from __future__ import annotations

import io
import random
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

HOSPITALS = ("cleveland", "hungarian", "switzerland", "va")
CHEST_PAIN, ELECTROCARDIOGRAM, DISEASE = 2, 6, 13
NINE = 4
"""The number of the first nine in OpenML's order of MNIST, and the only one below 10."""
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


@lru_cache(maxsize=1)
def mnist(folder: str) -> tuple[Any, Any]:
    """All 70,000 digits in their order, float32 [n, 784], each pixel standardised over all of them; and int64 [n].

    Args:
        folder: with MNIST as Parquet files, those for training and those for testing.
    """
    from PIL import Image
    from pyarrow import parquet

    files = sorted(Path(folder).glob("**/*.parquet"), key=lambda file: ("train" not in file.name, file.name))
    tables = [parquet.read_table(file) for file in files]
    images = [image["bytes"] for table in tables for image in table["image"].to_pylist()]
    values = np.stack([np.asarray(Image.open(io.BytesIO(image)), np.float32).ravel() for image in images])
    return (values - values.mean(0)) / (values.std(0) + 0.001), np.concatenate([table["label"] for table in tables])


def dealt(labels: Any) -> list[tuple[list[int], list[int]]]:
    """The digits of each of pFedMe's twenty clients, by their numbers, and the labels that they have there.

    The generator that stood beside the published results deals each digit in four parts. It means to go on where the
    client before has ended, but what it counts with is an array of truth values: every part begins with the first or
    the second image of its digit, so that clients share images, and what is left out shifts the labels by one.

    Args:
        labels: of all digits, in the order of the data set.
    """
    draw = np.random.RandomState(1)  # the authors' stream
    of = [np.flatnonzero(labels == digit) for digit in range(10)]
    parts = []
    for total in map(len, of):
        left, sizes = total, []
        for _ in range(3):
            sizes.append(draw.randint(left // 5, left // 2))
            left -= sizes[-1]
        parts.append([*sizes, left])
    ordered = iter([sizes[part] for part in range(4) for sizes in parts])
    begun = [digit == NINE for digit in range(10)]
    clients = []
    for user in range(20):
        numbers: list[int] = []
        targets: list[int] = []
        for digit in (user % 10, (user + 1) % 10):
            size = next(ordered)
            numbers += of[digit][int(begun[digit]) : size].tolist()
            targets += [digit] * size
            begun[digit] = True
        clients.append((numbers, targets[: len(numbers)]))
    return clients


def twodigits(client: int, folder: str = "") -> dict[str, Any]:
    """A client's images as in pFedMe's published results, of which 75 % are for training.

    Args:
        client: its number, of 20.
        folder: with MNIST as Parquet files.
    """
    images, labels = mnist(folder)
    shuffle = random.Random(1)
    for numbers, targets in dealt(labels)[: client + 1]:  # noqa: B007
        order = list(range(len(numbers)))
        shuffle.shuffle(order)
    x, y = images[np.array(numbers)[order]], np.array(targets)[order]
    train = int(0.75 * len(y))
    named = [str(digit) for digit in range(10)]
    return {"train": (x[:train], y[:train]), "test": (x[train:], y[train:]), "classes": named}
