"""Who holds which sample: partitioners over a label array, and each client's stratified train/validation/test split.

Letters: n samples, N clients, K classes that occur, k classes of one client.

`iid` and `dirichlet` are flwr-datasets' partitioners. The others are written here, because the library has none for
them, or (`pathological`) none that keeps its promise: its "random" mode drops classes that nobody drew, its
"first-deterministic" mode does so when there are fewer clients than classes, and its "deterministic" mode gives the
same neighbouring classes whatever the seed.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from fedham_flwr.core.errors import UserError
from fedham_flwr.core.imports import is_path
from fedham_flwr.core.seeding import derive, stream
from fedham_flwr.data.class_tables import Indices, hand_out, owner_amounts
from fedham_flwr.data.own_partitions import deal_by_function

if TYPE_CHECKING:
    from flwr_datasets.partitioner import Partitioner

MIN_CLIENT_SAMPLES = 10
"""`dirichlet` gives no client fewer (or half of an even share, where that is less)."""
DIRICHLET_TRIES = 10
"""How often `dirichlet` is drawn anew, with the next seed; the library itself draws 11 times per seed."""
MAJORITY_SHARE = 0.5
"""`noniid-2`: the part of a client's samples that its majority classes make up together (the paper gives no number)."""


@dataclass(frozen=True)
class Partitioning:
    """How samples are dealt to clients.

    Attributes:
        partitioner: iid | dirichlet | pathological | noniid-1 | noniid-2 | class-owners | class-table | natural.
        alpha: dirichlet: concentration, > 0; small is skewed.
        classes_per_client: pathological and noniid-1: the classes of one client; noniid-2: those it has most of.
        seed: the run's seed.
        samples_per_client: the most samples of one client, 0 for as many as it is dealt.
        owner_share: class-owners: the part of each class that its owner alone has, in [0, 1].
        class_table: class-table: the path of the table; read by `class_tables.read_table`, not here.
        own: the settings of a function of a user's that deals the samples; None without.
    """

    partitioner: str = "pathological"
    alpha: float = 0.1
    classes_per_client: int = 2
    seed: int = 0
    samples_per_client: int = 0
    owner_share: float = 0.9
    class_table: str = ""
    own: Any = None


@dataclass(frozen=True)
class Fractions:
    """Parts of a client's samples kept from training: validation in [0, 1), test in (0, 1), together below 1."""

    validation: float = 0.1
    test: float = 0.25


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
        N disjoint, sorted arrays of sample numbers, the largest first; clients of equal size keep the order in which
        they were dealt.

    Raises:
        UserError: the data set cannot be dealt in this way to so many clients.
    """
    if not is_path(partitioning.partitioner) and partitioning.partitioner not in (*_BY_LABEL, *_BY_OWNER):
        known = ", ".join((*_BY_LABEL, *_BY_OWNER))
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
    elif partitioning.partitioner in _BY_OWNER:
        parts = _BY_OWNER[partitioning.partitioner](owners, clients)
    else:
        parts = _BY_LABEL[partitioning.partitioner](partitioning, labels, clients)
    if partitioning.samples_per_client and ordered:
        parts = [np.sort(part)[: partitioning.samples_per_client] for part in parts]
    elif partitioning.samples_per_client:
        rng = stream(partitioning.seed, "samples-per-client")
        parts = [_thin(part, labels, partitioning.samples_per_client, rng) for part in parts]
    # Flower's simulation serves nodes in the order of their partition id, and the last client to finish sets the length
    # of a round: the largest must start first.
    parts = sorted((np.sort(part).astype(np.int64) for part in parts), key=len, reverse=True)
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
    if partitioning.partitioner in PARTITIONERS and partitioning.partitioner not in _WITHOUT_LABELS:
        raise UserError(
            f"partitioner is '{partitioning.partitioner}', which deals by class labels, but {what} has none; use "
            f"{' or '.join(_WITHOUT_LABELS)}."
        )


def split(
    indices: Indices, labels: Indices, fractions: Fractions, rng: np.random.Generator, client: str = ""
) -> dict[str, Indices]:
    """Cut one client's samples into train, validation and test, with the same class distribution in each.

    The sizes are the fractions of the client's samples, rounded; within each, classes go by largest remainder.
    A client gets at least 1 train and 1 test sample, and 1 for validation if it has 4 and the fraction is above 0.

    Args:
        indices: int64, the client's sample numbers.
        labels: int64 [n], the class of every sample of the data set.
        fractions: of validation and test.
        rng: decides which samples go where.
        client: the client's name, for error texts.

    Returns:
        Sorted sample numbers under "train", "validation" and "test": disjoint, and together `indices`.

    Raises:
        UserError: the fractions leave nothing to train on, or the client has fewer than 2 samples.
    """
    validation, test = _split_sizes(len(indices), fractions, client)
    shuffled = rng.permutation(indices)
    held = [shuffled[labels[shuffled] == c] for c in np.unique(labels[indices])]
    sizes = np.array([len(samples) for samples in held])
    # Validation is taken from what test has left, so that a class of one sample is never asked for two.
    tests = _apportion(sizes, test, rng)
    validations = _apportion(sizes - tests, validation, rng)
    pieces = [np.split(samples, [t, t + v]) for samples, t, v in zip(held, tests, validations, strict=True)]
    names = ("test", "validation", "train")
    splits = {name: np.sort(np.concatenate([piece[i] for piece in pieces])) for i, name in enumerate(names)}
    assert np.array_equal(np.sort(np.concatenate(list(splits.values()))), np.sort(indices)), "splits overlap"
    return splits


def split_in_order(indices: Indices, fractions: Fractions, client: str = "") -> dict[str, Indices]:
    """Cut one client's samples, which follow on one another: first those to train on, then validation, then test.

    Sizes, arguments, result and errors are those of `split`.
    """
    validation, test = _split_sizes(len(indices), fractions, client)
    ordered, train = np.sort(indices), len(indices) - validation - test
    return {"train": ordered[:train], "validation": ordered[train:-test], "test": ordered[-test:]}


def _split_sizes(n: int, fractions: Fractions, client: str) -> tuple[int, int]:
    """How many of n samples are for validation and for test, within the promises of `split`, or its errors."""
    if fractions.validation < 0 or fractions.test <= 0 or fractions.validation + fractions.test >= 1:
        raise UserError(
            f"validation-fraction is {fractions.validation} and test-fraction {fractions.test}, but they must be at "
            "least 0 and above 0, and together below 1, so that something is left to train on."
        )
    if n < 2:
        raise UserError(
            f"client '{client}' has {n} samples, but needs at least 2, one to train and one to test; "
            "use fewer clients or leave this one out."
        )
    least = int(fractions.validation > 0 and n >= 4)
    test = min(max(1, int(fractions.test * n + 0.5)), n - 1 - least)
    validation = min(max(least, int(fractions.validation * n + 0.5)), n - 1 - test)
    return validation, test


def _apportion(sizes: Indices, total: int, rng: np.random.Generator) -> Indices:
    """Take `total` from classes of these sizes in proportion (largest remainder, ties by lot), none above its size."""
    quotas = sizes * (total / max(1, int(sizes.sum())))
    shares: Indices = np.floor(quotas + 1e-9).astype(np.int64)  # 1e-9: a quota of 3 computed as 2.9999999999999996 is 3
    lot = rng.permutation(len(sizes))
    order = lot[np.argsort((shares - quotas)[lot], kind="stable")]
    shares[order[: total - shares.sum()]] += 1
    assert shares.sum() == total
    assert (shares <= sizes).all()
    return shares


def _thin(part: Indices, labels: Indices, most: int, rng: np.random.Generator) -> Indices:
    """At most so many of a client's samples, at random, with the classes in the same proportions."""
    if len(part) <= most:
        return part
    shuffled = rng.permutation(part)
    held = [shuffled[labels[shuffled] == c] for c in np.unique(labels[part])]
    kept = _apportion(np.array([len(samples) for samples in held]), most, rng)
    return np.concatenate([samples[:n] for samples, n in zip(held, kept, strict=True)])


def _iid(partitioning: Partitioning, labels: Indices, clients: int) -> list[Indices]:
    from flwr_datasets.partitioner import IidPartitioner

    # IidPartitioner cuts the rows as they lie, so they are shuffled first.
    order = stream(partitioning.seed, "partition").permutation(len(labels))
    return _by_library(IidPartitioner(num_partitions=clients), labels, order)


def _dirichlet(partitioning: Partitioning, labels: Indices, clients: int) -> list[Indices]:
    from flwr_datasets.partitioner import DirichletPartitioner

    if partitioning.alpha <= 0:
        raise UserError(f"alpha is {partitioning.alpha}, but the dirichlet partitioner needs a number above 0.")
    least = min(MIN_CLIENT_SAMPLES, len(labels) // (2 * clients))
    order = np.arange(len(labels))
    for attempt in range(DIRICHLET_TRIES):
        partitioner = DirichletPartitioner(
            num_partitions=clients,
            partition_by="label",
            alpha=partitioning.alpha,
            min_partition_size=least,
            self_balancing=True,
            seed=derive(partitioning.seed, "partition", attempt),
        )
        try:
            # If a class falls to none but clients that are full, the library divides 0 by 0 and goes on with NaN.
            with warnings.catch_warnings(), np.errstate(all="raise", under="ignore"):
                warnings.simplefilter("ignore")  # it warns at each draw that it repeats
                return _by_library(partitioner, labels, order)
        except (ValueError, ArithmeticError):
            continue
    raise UserError(
        f"dirichlet with alpha {partitioning.alpha} found no way to give each of {clients} clients at least {least} of "
        f"{len(labels)} samples; use fewer clients, a larger alpha, or more data."
    )


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


_BY_LABEL: dict[str, Callable[[Partitioning, Indices, int], list[Indices]]] = {
    "iid": _iid,
    "dirichlet": _dirichlet,
    "pathological": _pathological,
    "noniid-1": _noniid_1,
    "noniid-2": _noniid_2,
    "class-owners": _class_owners,
}
_BY_OWNER: dict[str, Callable[[npt.NDArray[Any] | None, int], list[Indices]]] = {
    "class-table": _class_table,
    "natural": _natural,
}
_WITHOUT_LABELS = ("natural", "iid")
PARTITIONERS = (*_BY_LABEL, *_BY_OWNER)
"""Names of the built-in partitioners."""
