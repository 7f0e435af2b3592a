"""Who holds which sample: samples are dealt to clients, by a built-in partitioner or a function of a user's.

Letters: n samples, N clients.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from fedham_flwr.core.errors import UserError
from fedham_flwr.core.imports import is_path
from fedham_flwr.core.seeding import stream
from fedham_flwr.data.class_tables import Indices
from fedham_flwr.data.data_settings import CLASS_GROUPS, Partitioning
from fedham_flwr.data.own_partitions import deal_by_function
from fedham_flwr.data.partitioners import BY_LABEL, BY_OWNER, PARTITIONERS, WITHOUT_LABELS
from fedham_flwr.data.splits import apportion


def partition(
    partitioning: Partitioning,
    labels: Indices,
    clients: int,
    owners: npt.NDArray[Any] | None = None,
    ordered: bool = False,
) -> list[Indices]:
    """Deal the samples to the clients.

    Args:
        partitioning: the partitioner and its settings.
        labels: int64 [n], the class of each sample.
        clients: N >= 1.
        owners: [n], whose each sample is; needed by `natural` and `class-table`, used by no other. Of `class-table`:
            0..N-1, or -1 for a sample that nobody has, as `class_tables.table_owners` deals them.
        ordered: the samples follow on one another and have no class, as those of a text: only `iid` and `natural` can
            deal them, and of each client's the first `samples_per_client` are kept.

    Returns:
        N disjoint, sorted arrays of sample numbers, the largest first; clients of equal size, and those of
        `class-groups`, keep the order in which they were dealt.

    Raises:
        UserError: the data set cannot be dealt in this way to so many clients.
    """
    if not is_path(partitioning.partitioner) and partitioning.partitioner not in (*BY_LABEL, *BY_OWNER):
        known = ", ".join((*BY_LABEL, *BY_OWNER))
        raise UserError(f"partitioner is '{partitioning.partitioner}', but must be one of {known}.")
    if ordered:
        check_classless(partitioning, "a text")
    if clients < 1 or len(labels) < 2 * clients:
        raise UserError(
            f"{len(labels)} samples cannot be dealt to {clients} clients, at least 2 each; use fewer clients."
        )
    if partitioning.samples_per_client < 0 or partitioning.samples_per_client == 1:
        raise UserError(
            f"samples-per-client is {partitioning.samples_per_client}, but must be 0 for all samples, or at least 2, "
            "one to train and one to test."
        )
    if is_path(partitioning.partitioner):
        others = {"alpha": partitioning.alpha, "num_classes_per_partition": partitioning.classes_per_client}
        parts = deal_by_function(
            partitioning.partitioner, partitioning.own, labels, clients, partitioning.seed, **others
        )
    elif partitioning.partitioner in BY_OWNER:
        parts = BY_OWNER[partitioning.partitioner](owners, clients)
    else:
        parts = BY_LABEL[partitioning.partitioner](partitioning, labels, clients)
    if partitioning.samples_per_client and ordered:
        parts = [np.sort(part)[: partitioning.samples_per_client] for part in parts]
    elif partitioning.samples_per_client:
        rng = stream(partitioning.seed, "samples-per-client")
        parts = [_thin(part, labels, partitioning.samples_per_client, rng) for part in parts]
    # Flower's simulation serves nodes in the order of their partition id, and the last client to finish sets the length
    # of a round: the largest must start first.
    parts = [np.sort(part).astype(np.int64) for part in parts]
    if partitioning.partitioner != CLASS_GROUPS:  # whose clients are of nearly one size, and of a group by their number
        parts = sorted(parts, key=len, reverse=True)
    everyone = np.concatenate(parts)
    assert len(parts) == clients
    assert len(np.unique(everyone)) == len(everyone), "a sample is held by two clients"
    return parts


def check_classless(partitioning: Partitioning, what: str) -> None:
    """Refuse partitioners that deal by class, for data without classes.

    Args:
        partitioning: the partitioner.
        what: the data, in words.

    Raises:
        UserError: the partitioner deals by class.
    """
    if partitioning.partitioner in PARTITIONERS and partitioning.partitioner not in WITHOUT_LABELS:
        raise UserError(
            f"partitioner is '{partitioning.partitioner}', which deals by class labels, but {what} has none; use "
            f"{', '.join(WITHOUT_LABELS[:-1])} or {WITHOUT_LABELS[-1]}."
        )


def _thin(part: Indices, labels: Indices, most: int, rng: np.random.Generator) -> Indices:
    """At most so many of a client's samples, at random, with the classes in the same proportions."""
    if len(part) <= most:
        return part
    shuffled = rng.permutation(part)
    held = [shuffled[labels[shuffled] == c] for c in np.unique(labels[part])]
    kept = apportion(np.array([len(samples) for samples in held]), most, rng)
    return np.concatenate([samples[:n] for samples, n in zip(held, kept, strict=True)])
