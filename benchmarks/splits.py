"""Whom a client should learn from, and whom it does: a split of CIFAR-10 as in Figures 5 to 7 of pFedLA; weights."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np

PAIRS = ([0, 1, 2, 3], [0, 1, 2, 3], [0, 1, 2, 4], [0, 1, 2, 4], [5, 6, 7, 8], [5, 6, 7, 8], [5, 6, 7, 9], [5, 6, 7, 9])
"""Classes of the clients: each has one peer with the same four, two with three of them, and four with none."""
IMAGES = 150
"""Of each class of a client."""


def write_pairs(data: Path, folder: Path) -> None:
    """Write CIFAR-10 images with a column `client`, 600 to a client and none twice; nothing if they are there.

    Args:
        data: folder with CIFAR-10 as Parquet files, columns image and label.
        folder: gets `train.parquet`, whole and renamed.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    from fedham_flwr.core.files import replacing

    if (folder / "train.parquet").exists():
        return
    images = pa.concat_tables(
        pq.read_table(file, columns=["image", "label"]) for file in sorted(data.glob("*.parquet"))
    )
    labels, rng = np.array(images["label"].to_pylist()), np.random.default_rng(0)
    left = {label: list(rng.permutation(np.flatnonzero(labels == label))) for label in range(10)}
    taken = [
        (left[label].pop(), str(client)) for client, held in enumerate(PAIRS) for label in held for _ in range(IMAGES)
    ]
    chosen, owners = zip(*taken, strict=True)
    folder.mkdir(parents=True, exist_ok=True)
    with replacing(folder / "train.parquet") as part:
        pq.write_table(images.take(pa.array(chosen)).append_column("client", pa.array(owners)), part)


def relations(path: Path, last: int, early: bool = False) -> dict[str, list[float]]:
    """Mean weight over the layer groups, for each kind of peer, of the last (or first) rounds.

    Kinds: self, and the number of classes that client and peer share.
    """
    weights = some_rounds(training_weights(path), last, early)
    held = {
        entry["client"]: {c for c, n in enumerate(entry["train-labels"]) if n}
        for entry in json.loads((path / "clients.json").read_text())
    }
    kinds: dict[str, list[float]] = defaultdict(list)
    for (client, peer), weight in weights.groupby(["client", "peer"], observed=True)["weight"].mean().items():
        kinds["self" if client == peer else str(len(held[client] & held[peer]))].append(weight)
    return kinds


def training_weights(path: Path) -> Any:
    """The mixing weights of the training rounds as a data frame; those of the closing evaluation are left out."""
    from fedham_flwr.reporting.mixing_weights import read_weights

    frame = read_weights(path).to_pandas()
    return frame[frame["round"] <= json.loads((path / "summary.json").read_text())["num-rounds"]]


def some_rounds(weights: Any, last: int, early: bool) -> Any:
    """The rows of the last (or first) rounds that have weights."""
    rounds = sorted(weights["round"].unique())
    return weights[weights["round"].isin(rounds[:last] if early else rounds[-last:])]


def own_weights(path: Path, last: int, early: bool = False) -> dict[str, float]:
    """Mean self weight of each layer group in the last (or first) rounds."""
    frame = some_rounds(training_weights(path), last, early)
    frame = frame[frame["client"].astype(str) == frame["peer"].astype(str)]
    return dict(frame.groupby("group", observed=True, sort=False)["weight"].mean())
