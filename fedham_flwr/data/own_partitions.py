"""A partitioner that is a function of a user's, or one of Flower's classes."""

from __future__ import annotations

from typing import Any

import numpy as np

from fedham_flwr.core.errors import UserError, first_line
from fedham_flwr.core.imports import call, load_object
from fedham_flwr.data.class_tables import Indices


def deal_by_function(path: str, own: Any, labels: Indices, clients: int, seed: int, **others: Any) -> list[Indices]:
    """The samples as a function of a user's deals them, or a partitioner of flwr-datasets.

    Args:
        path: its import path; a function is called with those of `labels`, `clients`, `seed` and its settings that it
            names, a class that has `load_partition` with those of `num_partitions`, `partition_by`, `seed`, its
            settings and `others`.
        own: its settings; None without.
        labels: int64 [n], the class of each sample.
        clients: how many.
        seed: of the data.
        others: settings of other partitioners that it may name.

    Raises:
        UserError: it fails, or does not give each client samples of its own.
    """
    what, deal = f'partitioner="{path}"', load_object("partitioner", path)
    try:
        if isinstance(deal, type) and hasattr(deal, "load_partition"):
            named = {"num_partitions": clients, "partition_by": "label", "seed": seed, **others}
            given = _dealt(call("partitioner", deal, own, **named), labels, clients)
        else:
            given = call("partitioner", deal, own, labels=labels.copy(), clients=clients, seed=seed)
        parts = [np.asarray(part, dtype=np.int64).reshape(-1) for part in given]
    except UserError:
        raise
    except Exception as error:  # whatever the user's function raises
        raise UserError(f"{what} failed: {type(error).__name__}: {first_line(error)}") from error
    everyone = np.concatenate([*parts, np.empty(0, dtype=np.int64)])
    if len(parts) != clients or min(map(len, parts), default=0) < 2:
        counts = ", ".join(map(str, map(len, parts)))
        raise UserError(f"{what} gives {counts or 'no'} samples, and wanted are {clients} lists of at least 2 numbers")
    if len(np.unique(everyone)) < len(everyone) or everyone.min() < 0 or everyone.max() >= len(labels):
        raise UserError(f"{what}: wanted numbers from 0 to {len(labels) - 1}, each of them at most once")
    return parts


def _dealt(partitioner: Any, labels: Indices, clients: int) -> list[Any]:
    """The rows of each partition."""
    import datasets

    partitioner.dataset = datasets.Dataset.from_dict({"row": np.arange(len(labels)), "label": labels})
    return [partitioner.load_partition(number)["row"] for number in range(clients)]
