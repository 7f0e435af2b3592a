"""The built-in partitioners: from a label array, or whose each sample is, to the sample numbers of each client.

Letters: n samples, N clients, K classes that occur, k classes of one client.

`iid` and `dirichlet` are flwr-datasets' partitioners. The others are written here, because the library has none for
them, or (`pathological`) none that keeps its promise: its "random" mode drops classes that nobody drew, its
"first-deterministic" mode does so when there are fewer clients than classes, and its "deterministic" mode gives the
same neighbouring classes whatever the seed.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from fedham_flwr.core.errors import UserError
from fedham_flwr.core.seeding import derive, stream
from fedham_flwr.data.class_tables import Indices, hand_out, owner_amounts
from fedham_flwr.data.data_settings import CLASS_GROUPS, Partitioning
from fedham_flwr.data.groups import class_amounts

if TYPE_CHECKING:
    from flwr_datasets.partitioner import Partitioner

MIN_CLIENT_SAMPLES = 10
"""`dirichlet` gives no client fewer (or half of an even share, where that is less)."""
DIRICHLET_TRIES, LIBRARY_TRIES = 10, 11
"""How often `dirichlet` is drawn anew, with the next seed, and how often the library itself draws for each seed."""
MAJORITY_SHARE = 0.5
"""`noniid-2`: the part of a client's samples that its majority classes make up together (the paper gives no number)."""


def _iid(partitioning: Partitioning, labels: Indices, clients: int) -> list[Indices]:
    from flwr_datasets.partitioner import IidPartitioner

    # IidPartitioner cuts the rows as they lie, so they are shuffled first.
    order = stream(partitioning.seed, "partition").permutation(len(labels))
    return _by_library(IidPartitioner(num_partitions=clients), labels, order)


def _dirichlet(partitioning: Partitioning, labels: Indices, clients: int) -> list[Indices]:
    from flwr_datasets.partitioner import DirichletPartitioner

    if partitioning.alpha <= 0:
        raise UserError(f"alpha is {partitioning.alpha}, but the dirichlet partitioner needs a number above 0.")
    least, order, best = min(MIN_CLIENT_SAMPLES, len(labels) // (2 * clients)), np.arange(len(labels)), 0
    for attempt in range(DIRICHLET_TRIES):
        seed = derive(partitioning.seed, "partition", attempt)
        # The library takes a second for each of its draws, and mostly draws in vain: what it will find is known before.
        smallest = dirichlet_smallest(labels, clients, partitioning.alpha, least, seed)
        best = max(best, smallest)
        if smallest < least:
            continue
        partitioner = DirichletPartitioner(
            num_partitions=clients,
            partition_by="label",
            alpha=partitioning.alpha,
            min_partition_size=least,
            self_balancing=True,
            seed=seed,
        )
        try:
            with warnings.catch_warnings(), np.errstate(all="raise", under="ignore"):
                warnings.simplefilter("ignore")  # it warns at each draw that it repeats
                return _by_library(partitioner, labels, order)
        except (ValueError, ArithmeticError):  # of a version that draws in another way
            continue
    raise UserError(
        f"dirichlet with alpha {partitioning.alpha} found no way to give each of {clients} clients at least {least} of "
        f"{len(labels)} samples: of {DIRICHLET_TRIES * LIBRARY_TRIES} draws the best left a client {best}; use fewer "
        "clients, a larger alpha, or more data."
    )


def dirichlet_smallest(labels: Indices, clients: int, alpha: float, least: int, seed: int) -> int:
    """The samples of the smallest client in the draw that flwr-datasets' DirichletPartitioner ends with, or its best.

    Its draws are made in the same way, from the same generator, but of numbers of samples alone.

    Args:
        labels: int64 [n], the class of each sample.
        clients: N.
        alpha: concentration.
        least: it draws anew where a client has fewer.
        seed: of the library's generator.
    """
    _, counts = np.unique(labels, return_counts=True)
    rng, best = np.random.default_rng(seed), 0
    for _try in range(LIBRARY_TRIES):
        sizes = np.zeros(clients, dtype=np.int64)
        for count in counts:
            shares = np.where(sizes > len(labels) / clients, 0.0, rng.dirichlet(np.full(clients, alpha)))
            whole = np.cumsum(shares)[-1]
            if not whole > 0:  # the class falls to none but clients that are full: the library divides 0 by 0
                return best
            ends = (np.cumsum(shares / whole) * count).astype(np.int64)[:-1]
            sizes += np.diff(ends, prepend=0, append=count)
        best = max(best, int(sizes.min()))
        if best >= least:
            break
    return best


def _by_library(partitioner: Partitioner, labels: Indices, order: Indices) -> list[Indices]:
    """Run a flwr-datasets partitioner over the samples in this order."""
    import datasets

    partitioner.dataset = datasets.Dataset.from_dict({"label": labels[order], "index": order})
    parts = (partitioner.load_partition(i) for i in range(partitioner.num_partitions))
    return [part.with_format("numpy")[:]["index"] for part in parts]


def _pathological(partitioning: Partitioning, labels: Indices, clients: int) -> list[Indices]:
    """Exactly k classes per client, each class cut evenly among its holders; no sample is dropped if N k >= K."""
    rng = stream(partitioning.seed, "partition")
    classes, counts, holds = _deal_classes(partitioning, labels, clients, rng)
    holders = holds.sum(axis=0)
    if (counts < holders).any():
        c = int(np.argmax(holders - counts))
        raise UserError(
            f"class {classes[c]} has {counts[c]} samples for {holders[c]} clients; use fewer clients, or a smaller "
            "classes-per-client."
        )
    parts: list[list[Indices]] = [[] for _ in range(clients)]
    for c in map(int, np.flatnonzero(holders)):
        pieces = np.array_split(rng.permutation(np.flatnonzero(labels == classes[c])), holders[c])
        for client, piece in zip(rng.permutation(np.flatnonzero(holds[:, c])), pieces, strict=True):
            parts[client].append(piece)
    return [np.concatenate(part) for part in parts]


def _noniid_1(partitioning: Partitioning, labels: Indices, clients: int) -> list[Indices]:
    """The first setting of pFedLA: k random classes per client, as many samples of each, the same for all clients."""
    rng = stream(partitioning.seed, "partition")
    classes, counts, holds = _deal_classes(partitioning, labels, clients, rng)
    holders = holds.sum(axis=0)
    each = int((counts[holders > 0] // holders[holders > 0]).min())
    if each == 0:
        raise UserError(f"noniid-1 has too few samples of some class for {clients} clients; use fewer clients.")
    return hand_out(labels, classes, holds * each, rng)


def _noniid_2(partitioning: Partitioning, labels: Indices, clients: int) -> list[Indices]:
    """The second setting of pFedLA: every class at every client, k of them make up `MAJORITY_SHARE` of its samples."""
    rng = stream(partitioning.seed, "partition")
    classes, counts, holds = _deal_classes(partitioning, labels, clients, rng)
    k, others = partitioning.classes_per_client, len(classes) - partitioning.classes_per_client
    if k >= others:
        raise UserError(
            f"classes-per-client is {k}, but for noniid-2 it must be less than half of the {len(classes)} classes."
        )
    holders = holds.sum(axis=0)
    few = np.arange(1, counts.min() // clients + 1)  # samples of a minority class at one client: all that could be
    many = np.rint(few * others / k * MAJORITY_SHARE / (1 - MAJORITY_SHARE)).astype(np.int64)
    fits = (np.outer(many, holders) + np.outer(few, clients - holders) <= counts).all(axis=1)
    if not fits.any():
        raise UserError(f"noniid-2 has too few samples of some class for {clients} clients; use fewer clients.")
    best = np.flatnonzero(fits)[-1]
    return hand_out(labels, classes, np.where(holds, many[best], few[best]), rng)


def _class_groups(partitioning: Partitioning, labels: Indices, clients: int) -> list[Indices]:
    """Classes of its own to each group of clients."""
    classes, counts = np.unique(labels, return_counts=True)
    rng = stream(partitioning.seed, "partition")
    return hand_out(labels, classes, class_amounts(counts, clients, partitioning.groups, rng), rng)


def _class_owners(partitioning: Partitioning, labels: Indices, clients: int) -> list[Indices]:
    """A share of each class to the client that owns it, the rest of it to all."""
    classes, counts = np.unique(labels, return_counts=True)
    amounts = owner_amounts(counts, clients, partitioning.owner_share)
    return hand_out(labels, classes, amounts, stream(partitioning.seed, "partition"))


def _class_table(owners: npt.NDArray[Any] | None, clients: int) -> list[Indices]:
    """Whatever the table gave to each."""
    if owners is None:
        raise UserError("the class-table partitioner needs a table, which says how many samples of a class each has.")
    return [np.flatnonzero(owners == client) for client in range(clients)]


def _natural(owners: npt.NDArray[Any] | None, clients: int) -> list[Indices]:
    """Every owner is a client; the largest N of them, if there are more."""
    if owners is None:
        raise UserError("the natural partitioner needs client-column, the column that names the client of each sample.")
    _, who, counts = np.unique(owners, return_inverse=True, return_counts=True)
    if len(counts) < clients:
        raise UserError(f"{clients} clients were asked for, but client-column names only {len(counts)} clients.")
    parts = np.split(np.argsort(who, kind="stable"), np.cumsum(counts)[:-1])
    return [parts[i] for i in np.argsort(-counts, kind="stable")[:clients]]


def _deal_classes(
    partitioning: Partitioning, labels: Indices, clients: int, rng: np.random.Generator
) -> tuple[Indices, Indices, npt.NDArray[np.bool_]]:
    """Give each client k classes at random, such that the numbers of holders of any two classes differ by 1 at most.

    Returns:
        The classes [K], their sizes [K], and who holds which: bool [N, K], k true in each row.
    """
    classes, counts = np.unique(labels, return_counts=True)
    k = partitioning.classes_per_client
    if not 1 <= k <= len(classes):
        raise UserError(
            f"classes-per-client is {k}, but must be from 1 to {len(classes)}, the classes of the data set."
        )
    slots = np.full(len(classes), clients * k // len(classes))
    slots[rng.permutation(len(classes))[: clients * k % len(classes)]] += 1
    holds = np.zeros((clients, len(classes)), dtype=np.bool_)
    for client, left in zip(range(clients), range(clients, 0, -1), strict=True):
        # A class with as many free slots as clients are left must be taken by all of them; the rest is open.
        forced, free = np.flatnonzero(slots == left), np.flatnonzero((slots > 0) & (slots < left))
        chosen = forced
        if len(forced) < k:
            weights = slots[free] / slots[free].sum()
            chosen = np.concatenate([forced, rng.choice(free, k - len(forced), replace=False, p=weights)])
        holds[client, chosen] = True
        slots[chosen] -= 1
    return classes, counts, holds


BY_LABEL: dict[str, Callable[[Partitioning, Indices, int], list[Indices]]] = {
    "iid": _iid,
    "dirichlet": _dirichlet,
    "pathological": _pathological,
    "noniid-1": _noniid_1,
    "noniid-2": _noniid_2,
    CLASS_GROUPS: _class_groups,
    "class-owners": _class_owners,
}
"""Those that deal by class: of the settings, the labels int64 [n], and N."""
BY_OWNER: dict[str, Callable[[npt.NDArray[Any] | None, int], list[Indices]]] = {
    "class-table": _class_table,
    "natural": _natural,
    "files": _natural,
}
"""Those that deal by owner: of whose each sample is, [n] or None, and N."""
BY_NAME = ("natural", "files")
"""Those whose clients have names in the data, and are as many as these."""
WITHOUT_LABELS = (*BY_NAME, "iid")
"""Those that deal data without classes."""
PARTITIONERS = (*BY_LABEL, *BY_OWNER)
"""Names of the built-in partitioners."""
