"""Who takes part in a simulation, with which samples: clients that data name, or parts that are drawn."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fedham_flwr.core.errors import UserError
from fedham_flwr.core.imports import is_path, source_digest
from fedham_flwr.core.seeding import stream
from fedham_flwr.data import row_hashes
from fedham_flwr.data.cache import array, key_of, meta_of
from fedham_flwr.data.class_tables import ClassTable, Indices, table_owners
from fedham_flwr.data.data_settings import DataSettings
from fedham_flwr.data.kinds import text as texts
from fedham_flwr.data.partitioners import BY_NAME
from fedham_flwr.data.partitions import check_classless, partition
from fedham_flwr.data.splits import split, split_by_rows, split_in_order
from fedham_flwr.data.window_splits import split_recordings, split_windows

FIRST = 5
"""How many names a note lists before it counts the rest."""


class Dealt(NamedTuple):
    """Who has what.

    Attributes:
        names: of the clients; the parts' numbers where they are drawn.
        parts: the numbers of each client's samples.
        notes: sentences about clients that are left out, or named strangely.
        owned: the samples belong to the clients, and were not drawn for them.
        there: how many clients the data have, also those that were not asked for; 0 where these don't say so.
    """

    names: list[str]
    parts: list[Indices]
    notes: Sequence[str] = ()
    owned: bool = False
    there: int = 0


class Owned(NamedTuple):
    """Data whose samples belong to somebody.

    Attributes:
        names: of all owners.
        owners: int64 [n], whose each sample is.
        kept: the numbers of the samples of those who can take part.
        there: the places in `names` of those.
        notes: as of `Dealt`.
    """

    names: list[str]
    owners: Indices
    kept: Indices
    there: Indices
    notes: list[str]


def deal(settings: DataSettings, data: Path, clients: int, table: ClassTable | None) -> Dealt:
    """Deal a decoded data set to the clients of a simulation.

    Args:
        settings: how.
        data: the folder of the cache with the samples.
        clients: how many.
        table: of class-table.

    Raises:
        UserError: it can't be dealt in this way.
    """
    partitioning, meta, labels = settings.partitioning, meta_of(data), classes_of(data)
    if meta.get("target"):
        check_classless(partitioning, f'target="{meta["target"]}"')
    if partitioning.partitioner in BY_NAME:
        return _deal_owned(settings, data, clients)
    if meta["kind"] == "text":
        texts.check_length(settings.dataset, meta["characters"][0], settings.sequence_length, clients)
        parts = partition(partitioning, labels, clients, ordered=True)
    elif table:
        owners = table_owners(table, meta["classes"], labels, clients, partitioning.seed)
        parts = partition(partitioning, labels, clients, owners)
        return Dealt([[*table.clients][owners[part[0]]] for part in parts], parts, there=clients)
    else:
        parts = partition(partitioning, labels, clients)
    return Dealt([str(number) for number in range(clients)], parts)


def key_of_dealing(settings: DataSettings, data: Path, clients: int, table: ClassTable | None) -> str:
    """Of the folder of the cache with the clients.

    Args:
        settings: as for `deal`.
        data: as for `deal`.
        clients: as for `deal`.
        table: as for `deal`.
    """
    partitioning = settings.partitioning
    of_text = {"min-characters": settings.min_characters} if meta_of(data)["kind"] == "text" else {}
    # What the table says is part of the key, and where it lies is not: dealt anew when it is edited, not when moved.
    content = [*(table.clients.items() if table else ()), *settings.shift]
    dealt = asdict(replace(partitioning, class_table=""))
    for later in [key for key in ("own", "groups") if not dealt[key]]:
        del dealt[later]
    if is_path(partitioning.partitioner):
        dealt["code"] = source_digest(partitioning.partitioner)  # dealt anew when it changes
    return key_of(dealt, asdict(settings.fractions), clients, *of_text.items(), *content)


def classes_of(data: Path) -> Indices:
    """The class of each sample of a folder of the cache; the same for all where there are no classes."""
    labels: Indices = array(data / "labels.npy")
    return np.zeros(len(labels), dtype=np.int64) if meta_of(data).get("target") else labels


def by_rows(data: Path) -> bool:
    """Whether samples are rows, each of which is split by what is in it, rather than parts that follow on one another.

    Args:
        data: the folder of the cache.
    """
    meta = meta_of(data)
    return meta["kind"] != "text" and not meta.get("ordered")


def owners_of(settings: DataSettings, data: Path, clients: int = 1) -> Owned:
    """Who there is in data whose samples belong to somebody, and who of them can take part.

    Args:
        settings: of the data.
        data: the folder of the cache.
        clients: how many are needed of a text's owners.

    Raises:
        UserError: too few owners have enough text.
    """
    meta = meta_of(data)
    names, owners = meta["owners"], array(data / "owners.npy")
    if by_rows(data):
        kept, why = _kept_rows(settings, data, owners), "with fewer than 2 samples, or none to train on"
    elif meta["kind"] == "text":
        length, least = settings.sequence_length, settings.min_characters
        kept = texts.samples_of_long_texts(meta["characters"], owners, length, least, clients)
        why = f"with fewer than {max(2 * length + 1, least)} characters"
    else:
        kept, why = np.flatnonzero(np.bincount(owners, minlength=len(names))[owners] >= 2), "with fewer than 2 samples"
    there = np.unique(owners[kept])
    missing = [names[place] for place in np.setdiff1d(np.arange(len(names)), there)]
    notes = [f"left out of {len(names)} clients, {why}: {some(missing)}"] if missing else []
    return Owned(names, owners, kept, there, [*notes, *_alike(names)])


def splitter(settings: DataSettings, data: Path, owned: bool) -> Callable[[Indices, str], dict[str, Indices]]:
    """What splits a client's samples, of their numbers and its name.

    Args:
        settings: of the data.
        data: the folder of the cache with the samples.
        owned: as of `Dealt`.
    """
    seed, fractions = settings.partitioning.seed, settings.fractions
    if (data / "spans.npy").exists():
        spans = array(data / "spans.npy")
        if settings.series.split == "recording":
            shares = row_hashes.shares(array(data / row_hashes.RECORDINGS), seed, "split")
            return lambda part, name: split_recordings(part, spans, shares, fractions, name)
        return lambda part, name: split_windows(part, spans, fractions, stream(seed, "split", client=name), name)
    if not by_rows(data):
        return lambda part, name: split_in_order(part, fractions, name)
    if not owned:
        classes = classes_of(data)
        return lambda part, name: split(part, classes, fractions, stream(seed, "split", client=name), name)
    shares = row_hashes.shares(row_hashes.hashes_of(data), seed, "split")

    def split_owned(part: Indices, name: str) -> dict[str, Indices]:
        splits = split_by_rows(part, shares, fractions)
        if len(part) < 2 or not len(splits["train"]):
            raise UserError(
                f"client '{name}' has {len(part)} samples, of which {len(splits['train'])} are for training: wanted "
                "at least 2, and 1 to train on; where a sample goes is decided by what is in it, so more are needed."
            )
        return splits

    return split_owned


def some(names: Sequence[Any]) -> str:
    """The first names, and how many more there are."""
    rest = f" and {len(names) - FIRST:,} more" if len(names) > FIRST else ""
    return ", ".join(map(str, names[:FIRST])) + rest


def _deal_owned(settings: DataSettings, data: Path, clients: int) -> Dealt:
    """Every owner is a client; the largest if fewer are wanted."""
    found, files = owners_of(settings, data, clients), settings.partitioning.partitioner == "files"
    if len(found.there) < clients:
        what = f"the folder {settings.dataset} has" if files else "client-column names"
        left_out = f" ({found.notes[0]})" if len(found.there) < len(found.names) else ""
        raise UserError(f"{clients} clients were asked for, but {what} only {len(found.there)} clients{left_out}.")
    rows = by_rows(data)
    partitioning = replace(settings.partitioning, samples_per_client=0) if rows else settings.partitioning
    labels = classes_of(data)[found.kept]
    parts = partition(partitioning, labels, clients, found.owners[found.kept], ordered=not rows)
    parts = [found.kept[part] for part in parts]
    places = [found.owners[part[0]] for part in parts]
    notes = found.notes
    if others := [found.names[place] for place in np.setdiff1d(found.there, places)]:
        notes = [
            f"{clients} clients take part of the {len(found.there)} that there are, those with most samples; left out "
            f"are {some(others)} (--num-supernodes {len(found.there)} has them all)",
            *notes,
        ]
    return Dealt([found.names[place] for place in places], parts, notes, True, len(found.there))


def _kept_rows(settings: DataSettings, data: Path, owners: Indices) -> Indices:
    """The rows of all owners that have 2 at least, one of which falls to training, or `samples-per-client` of each.

    Which rows these are depends on what is in them alone, and not on how many there are.
    """
    most, seed, kept = settings.partitioning.samples_per_client, settings.partitioning.seed, np.arange(len(owners))
    hashes = row_hashes.hashes_of(data)
    if most:
        order = np.lexsort((row_hashes.shares(hashes, seed, "samples-per-client"), owners))
        counts = np.bincount(owners)
        place = np.empty(len(owners), dtype=np.int64)  # of a row among its owner's
        place[order] = np.arange(len(owners)) - np.repeat(np.cumsum(counts) - counts, counts)
        kept = np.flatnonzero(place < most)
    train = split_by_rows(kept, row_hashes.shares(hashes, seed, "split"), settings.fractions)["train"]
    many, trained = (np.bincount(owners[rows], minlength=int(owners.max()) + 1) for rows in (kept, train))
    return kept[((many >= 2) & (trained >= 1))[owners[kept]]]


def _alike(names: Sequence[str]) -> list[str]:
    """A note about names that only case and blanks tell apart."""
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(" ".join(name.split()).casefold(), []).append(name)
    alike = [", ".join(map(repr, group)) for group in groups.values() if len(group) > 1]
    if not alike:
        return []
    return [
        f"of the {len(names)} names of clients, some differ by case or blanks only, and are clients of their own: "
        + "; ".join([*alike[:FIRST], *([f"and {len(alike) - FIRST} more"] if len(alike) > FIRST else [])])
    ]
