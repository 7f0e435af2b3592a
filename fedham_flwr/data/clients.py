"""What client k sees: a data set, decoded once per machine, and the numbers of the samples that are the client's.

In the cache there is a folder per data set, `data-<key>`, with a folder per partitioning in it, `clients-<key>`. A
text's samples and their partitionings are in a folder in between, `windows-<key>`, since they depend on settings that
mean nothing to other data; a table's rows are in each partitioning anew, since each client scales its own.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fedham_flwr.core.errors import UserError
from fedham_flwr.core.imports import is_path, source_digest
from fedham_flwr.core.seeding import stream
from fedham_flwr.data.cache import array, build, cache_root, key_of, meta_of, unwritable
from fedham_flwr.data.class_tables import Indices, read_table, table_owners
from fedham_flwr.data.client_data import SPLITS, ClientData
from fedham_flwr.data.columns import Columns
from fedham_flwr.data.data_settings import DataSettings
from fedham_flwr.data.decoding import decode
from fedham_flwr.data.kinds import table as tables
from fedham_flwr.data.kinds import table_decoding
from fedham_flwr.data.kinds import text as texts
from fedham_flwr.data.partitions import check_classless, partition
from fedham_flwr.data.sources import content_key
from fedham_flwr.data.splits import split, split_in_order


def open_partition(settings: DataSettings, number: int, clients: int) -> ClientData:
    """The data of one client of a simulation, from the cache; the first call decodes and deals the data set.

    Args:
        settings: which data set, and how it is dealt.
        number: of the client, 0 (which has most samples) to clients - 1.
        clients: how many the data set is dealt to.

    Raises:
        UserError: the data set can't be read or dealt in this way, or the cache can't be written.
    """
    return open_partitions(settings, clients)(number)


def open_partitions(settings: DataSettings, clients: int) -> Callable[[int], ClientData]:
    """What opens the data of any client of a simulation, by its number; the data set is looked at once.

    Args:
        settings: as for `open_partition`.
        clients: as for `open_partition`.

    Raises:
        UserError: as for `open_partition`.
    """
    partitioning = settings.partitioning
    table = read_table(partitioning.class_table) if partitioning.partitioner == "class-table" else None
    natural = partitioning.partitioner == "natural"
    data = _data_folder(settings, settings.dataset, client_column=settings.client_column if natural else "")
    of_text = {"min-characters": settings.min_characters} if meta_of(data)["kind"] == "text" else {}

    def deal() -> tuple[list[str], list[Indices]]:
        labels, meta = _classes(data), meta_of(data)
        if meta.get("target"):
            check_classless(partitioning, f'target="{meta["target"]}"')
        names: list[str] = meta.get("owners", [])
        owners = array(data / "owners.npy") if names else None
        if of_text:
            parts = _deal_text(settings, meta, labels, owners, clients)
        else:
            if table:
                names = [*table.clients]
                owners = table_owners(table, meta["classes"], labels, clients, partitioning.seed)
            parts = partition(partitioning, labels, clients, owners)
        if owners is None:
            return [str(i) for i in range(clients)], parts
        return [names[owners[part[0]]] for part in parts], parts

    # What the table says is part of the key, and where it lies is not: dealt anew when it is edited, not when moved.
    content = [*table.clients.items()] if table else []
    dealt = asdict(replace(partitioning, class_table=""))
    if partitioning.own is None:
        del dealt["own"]
    if is_path(partitioning.partitioner):
        dealt["code"] = source_digest(partitioning.partitioner)  # dealt anew when it changes
    key = key_of(dealt, asdict(settings.fractions), clients, *of_text.items(), *content)
    opener = _opener(data, _clients_folder(data, key, settings, deal))

    def opened(number: int) -> ClientData:
        if not 0 <= number < clients:
            raise UserError(
                f"partition {number} was asked for, but with {clients} clients they go from 0 to {clients - 1}."
            )
        return opener(number)

    return opened


def _deal_text(
    settings: DataSettings, meta: Mapping[str, Any], labels: Indices, owners: Indices | None, clients: int
) -> list[Indices]:
    """As `partition`, among the owners who have enough text."""
    partitioning, length, characters = settings.partitioning, settings.sequence_length, meta["characters"]
    if owners is None:
        texts.check_length(settings.dataset, characters[0], length, clients)
        return partition(partitioning, labels, clients, ordered=True)
    kept = texts.samples_of_long_texts(characters, owners, length, settings.min_characters, clients)
    return [kept[part] for part in partition(partitioning, labels[kept], clients, owners[kept], ordered=True)]


def open_node(settings: DataSettings, path: str) -> ClientData:
    """The data of a node that has its own: the whole data set at `path`, split but not dealt.

    Args:
        settings: as for `open_partition`; its data set and its partitioner are not used, its seed and columns are.
        path: a local folder or file (or any other source). Its last part is the client's name.

    Raises:
        UserError: as for `open_partition`.
    """
    name = Path(path).name or path
    data = _data_folder(settings, path, client_column="")

    def deal() -> tuple[list[str], list[Indices]]:
        meta = meta_of(data)
        if meta["kind"] == "text":
            texts.check_length(path, meta["characters"][0], settings.sequence_length)
        if meta["kind"] == "table" or meta.get("target"):
            table_decoding.check_classes(path, meta["classes"], meta["declared"])
        return [name], [np.arange(len(array(data / "labels.npy")))]

    key = key_of("node", name, settings.partitioning.seed, asdict(settings.fractions))
    return _opener(data, _clients_folder(data, key, settings, deal))(0)


# ---- folders of the cache --------------------------------------------------------------------------------------------


def _data_folder(settings: DataSettings, source: str, client_column: str) -> Path:
    """The folder with the samples of this source, as arrays."""
    root = cache_root(settings.cache_dir)
    columns = Columns(settings.feature_column, settings.label_column, client_column, settings.target)
    side = settings.image_size
    # What came after the first version is part of the key only where it is not the default.
    named = {key: value for key, value in asdict(columns).items() if (key, value) != ("target", "auto")}
    named |= {"image-size": side} if side else {}
    named |= settings.table_key()
    try:
        root.mkdir(parents=True, exist_ok=True)
        content = content_key(source, root / "digests.json")
    except OSError as error:
        raise unwritable(root, error) from error
    data = build(root / f"data-{key_of(content, named)}", lambda folder: decode(source, columns, folder, settings))
    if meta_of(data)["kind"] != "text":
        return data
    length, vocabulary = settings.sequence_length, settings.vocabulary
    key = key_of(length, texts.parse_vocabulary(vocabulary))
    return build(data / f"windows-{key}", lambda folder: texts.cut(data, length, vocabulary, folder))


def _clients_folder(
    data: Path, key: str, settings: DataSettings, deal: Callable[[], tuple[list[str], list[Indices]]]
) -> Path:
    """The folder with every client's name and sample numbers, and with the rows of a table."""

    def fill(folder: Path) -> None:
        names, parts = deal()
        pieces = []
        for name, part in zip(names, parts, strict=True):
            splits = _split(settings, data, part, name)
            pieces.append([splits[which] for which in SPLITS])
        np.save(folder / "indices.npy", np.concatenate([piece for client in pieces for piece in client]))
        counts = [[len(piece) for piece in client] for client in pieces]
        (folder / "meta.json").write_text(json.dumps({"names": names, "counts": counts}))
        if meta_of(data)["kind"] == "table":
            rows = [(np.concatenate(client), client[SPLITS.index("train")]) for client in pieces]
            table_decoding.standardise(array(data / "features.npy"), rows, folder)

    return build(data / f"clients-{key}", fill)


def _split(settings: DataSettings, data: Path, part: Indices, name: str) -> dict[str, Indices]:
    if meta_of(data)["kind"] == "text":
        return split_in_order(part, settings.fractions, name)
    rng = stream(settings.partitioning.seed, "split", client=name)
    return split(part, _classes(data), settings.fractions, rng, name)


def _classes(data: Path) -> Indices:
    """The class of each sample; the same for all where there are no classes."""
    labels: Indices = array(data / "labels.npy")
    return np.zeros(len(labels), dtype=np.int64) if meta_of(data).get("target") else labels


def _opener(data: Path, clients: Path) -> Callable[[int], ClientData]:
    """What maps the arrays and cuts out a client's sample numbers, which lie client by client, split by split."""
    meta, kind = meta_of(clients), meta_of(data)["kind"]
    counts = np.array(meta["counts"])
    ends = counts.cumsum().reshape(counts.shape)
    indices = torch.from_numpy(array(clients / "indices.npy"))
    features = torch.from_numpy(array((clients if kind == "table" else data) / "features.npy"))
    labels = torch.from_numpy(array(data / "labels.npy"))
    classes = tuple(meta_of(data)["classes"])
    scaled = array(clients / "scaling.npy") if kind == "table" else None
    columns = () if scaled is None else tables.columns_of(meta_of(data)["columns"])

    def opened(number: int) -> ClientData:
        pieces = zip(SPLITS, ends[number].tolist(), counts[number].tolist(), strict=True)
        scaling = None
        if scaled is not None:
            mean, std = scaled[number].tolist()
            scaling = tables.Scaling(columns, tuple(mean), tuple(std))
        splits = {name: indices[end - count : end] for name, end, count in pieces}
        return ClientData(features, labels, splits, classes, meta["names"][number], scaling)

    return opened
