"""What client k sees: a data set, decoded once per machine, and the numbers of the samples that are the client's.

The cache is a folder per data set, `data-<key>`, with a folder per partitioning in it, `clients-<key>`; the keys are
digests of content and settings, so nothing in it goes stale. A text's samples and their partitionings are in a folder
in between, `windows-<key>`, since they depend on settings that mean nothing to other data; a table's rows are in each
partitioning anew, since each client scales its own. All processes of a machine
map the same pages, and opening a client costs milliseconds: a client process may live for one message only.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from filelock import FileLock
from torch import Tensor

from fedham_flwr.core.errors import UserError
from fedham_flwr.core.imports import is_path, source_digest
from fedham_flwr.core.seeding import stream
from fedham_flwr.data.batches import Kind, Target, kind_of, sample_shape, target_of
from fedham_flwr.data.class_tables import Indices, read_table, table_owners
from fedham_flwr.data.columns import Columns
from fedham_flwr.data.kinds import table as tables
from fedham_flwr.data.kinds import text as texts
from fedham_flwr.data.partitions import Fractions, Partitioning, check_classless, partition, split, split_in_order
from fedham_flwr.data.sources import content_key, decode

SPLITS = ("train", "validation", "test")
_FORMAT = 1  # of the cache; to be raised whenever decoding, dealing or splitting gives another result


@dataclass(frozen=True)
class DataSettings:
    """Which data set, and how it is dealt.

    Attributes:
        dataset: digits, a local folder or file, or a name on the Hugging Face Hub.
        feature_column: empty: the only image column, else the column called text; a table's columns, with blanks
            between.
        label_column: empty: the only class-label column; of a text: there is none. Of values and labels to be had
            several at a time there may be several columns, with blanks between.
        client_column: names the client of each sample; read by the natural partitioner only.
        sequence_length: text: characters of one sample, T.
        vocabulary: text: its characters, in the order of their codes; empty: the 100 of `string.printable`.
        min_characters: text, natural partitioner: clients with fewer are left out.
        partitioning: who holds which sample.
        fractions: of each client's samples, for validation and test.
        cache_dir: empty: fedham-flwr in the user's cache folder.
        target: what is to be learned: auto, class, multi-label, value or next-token.
        own: the settings of a function of a user's that loads the data; None without.
        image_size: pixels of the square that images are resized to; 0: they stay as they are.
    """

    dataset: str = "digits"
    feature_column: str = ""
    label_column: str = ""
    client_column: str = ""
    sequence_length: int = 80
    vocabulary: str = ""
    min_characters: int = 0
    partitioning: Partitioning = field(default_factory=Partitioning)
    fractions: Fractions = field(default_factory=Fractions)
    cache_dir: str = ""
    target: str = "auto"
    own: Any = None
    image_size: int = 0


@dataclass(frozen=True)
class ClientData:
    """One client's view of a data set.

    Attributes:
        features: uint8 [N, H, W, C] of images, [N, T + 1] of text, float32 [N, F] of a table, standardised, and NaN
            where a value is missing, float32 [N, ...] of arrays; all samples of the data set, mapped from disk: index
            it, never copy it whole.
        labels: int64 [N], classes; of text: zeros. Or uint8 or bool [N, k], which labels a sample has; or float32 [N]
            or [N, k], values.
        splits: "train", "validation" and "test" -> int64, the sample numbers of this client.
        classes: K names; of text: the characters of the vocabulary; of multi-label data the k labels, of values their
            k names, or none.
        name: the partition's number; with the natural partitioner the owner's name, with class-table the table's.
        scaling: of a table: how raw rows become inputs. It says something of this client's data, and stays with it.
        kind: what the samples are; by default told by the features.
    """

    features: Tensor
    labels: Tensor
    splits: Mapping[str, Tensor]
    classes: tuple[str, ...]
    name: str
    scaling: tables.Scaling | None = None
    kind: Kind = None  # type: ignore[assignment]  # never, after __post_init__

    def __post_init__(self) -> None:
        if self.kind is None:
            object.__setattr__(self, "kind", kind_of(self.features))

    @property
    def shape(self) -> tuple[int, ...]:
        """One sample as a network sees it: (C, H, W) of an image, (T,) of a text, (2, F) of a table."""
        return sample_shape(self.features, self.kind)

    @property
    def target(self) -> Target:
        """What is to be learned."""
        return "next-token" if self.kind == "text" else target_of(self.labels)

    @property
    def outputs(self) -> int:
        """How many numbers a network gives for one prediction: K classes, k labels, or k values."""
        if self.target in ("class", "next-token"):
            return len(self.classes)
        return self.labels.shape[1] if self.labels.dim() == 2 else 1

    def counts(self) -> dict[str, int]:
        """Samples per split."""
        return {name: len(indices) for name, indices in self.splits.items()}

    def label_counts(self, which: str) -> list[int]:
        """How often each of the K classes is a target in this split: once per sample, or T times in a text.

        Nothing where there are no classes, but values or several labels.
        """
        if self.target in ("value", "multi-label"):
            return []
        index = self.splits[which]
        targets = self.features[index][:, 1:].flatten() if self.kind == "text" else self.labels[index]
        return torch.bincount(targets, minlength=len(self.classes)).tolist()


def open_partition(settings: DataSettings, number: int, clients: int) -> ClientData:
    """The data of one client of a simulation, from the cache; the first call decodes and deals the data set.

    Args:
        settings: which data set, and how it is dealt.
        number: of the client, 0 (which has most samples) to clients - 1.
        clients: how many the data set is dealt to.

    Raises:
        UserError: the data set can't be read or dealt in this way, or the cache can't be written.
    """
    if not 0 <= number < clients:
        raise UserError(
            f"partition {number} was asked for, but with {clients} clients they go from 0 to {clients - 1}."
        )
    partitioning = settings.partitioning
    table = read_table(partitioning.class_table) if partitioning.partitioner == "class-table" else None
    natural = partitioning.partitioner == "natural"
    data = _data_folder(settings, settings.dataset, client_column=settings.client_column if natural else "")
    of_text = {"min-characters": settings.min_characters} if _meta(data)["kind"] == "text" else {}

    def deal() -> tuple[list[str], list[Indices]]:
        labels, meta = _classes(data), _meta(data)
        if meta.get("target"):
            check_classless(partitioning, f'target="{meta["target"]}"')
        names: list[str] = meta.get("owners", [])
        owners = _array(data / "owners.npy") if names else None
        if of_text:
            parts = _deal_text(settings, meta, labels, owners, clients)
        else:
            if table:
                names, owners = (
                    [*table.clients],
                    table_owners(table, meta["classes"], labels, clients, partitioning.seed),
                )
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
    key = _key(dealt, asdict(settings.fractions), clients, *of_text.items(), *content)
    return _open_client(data, _clients_folder(data, key, settings, deal), number)


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
        meta = _meta(data)
        if meta["kind"] == "text":
            texts.check_length(path, meta["characters"][0], settings.sequence_length)
        if meta["kind"] == "table" or meta.get("target"):
            tables.check_classes(path, meta["classes"], meta["declared"])
        return [name], [np.arange(len(_array(data / "labels.npy")))]

    key = _key("node", name, settings.partitioning.seed, asdict(settings.fractions))
    return _open_client(data, _clients_folder(data, key, settings, deal), 0)


# ---- the cache -------------------------------------------------------------------------------------------------------


def _data_folder(settings: DataSettings, source: str, client_column: str) -> Path:
    """The folder with the samples of this source, as arrays."""
    root = _cache_root(settings.cache_dir)
    columns = Columns(settings.feature_column, settings.label_column, client_column, settings.target)
    side = settings.image_size
    # What came after the first version is part of the key only where it is not the default.
    named = {key: value for key, value in asdict(columns).items() if (key, value) != ("target", "auto")}
    named |= {"image-size": side} if side else {}
    try:
        root.mkdir(parents=True, exist_ok=True)
        content = content_key(source, root / "digests.json")
    except OSError as error:
        raise _unwritable(root, error) from error
    data = _build(root / f"data-{_key(content, named)}", lambda folder: decode(source, columns, folder, side))
    if _meta(data)["kind"] != "text":
        return data
    length, vocabulary = settings.sequence_length, settings.vocabulary
    key = _key(length, texts.parse_vocabulary(vocabulary))
    return _build(data / f"windows-{key}", lambda folder: texts.cut(data, length, vocabulary, folder))


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
        if _meta(data)["kind"] == "table":
            rows = [(np.concatenate(client), client[SPLITS.index("train")]) for client in pieces]
            tables.standardise(_array(data / "features.npy"), rows, folder)

    return _build(data / f"clients-{key}", fill)


def _split(settings: DataSettings, data: Path, part: Indices, name: str) -> dict[str, Indices]:
    if _meta(data)["kind"] == "text":
        return split_in_order(part, settings.fractions, name)
    rng = stream(settings.partitioning.seed, "split", client=name)
    return split(part, _classes(data), settings.fractions, rng, name)


def _classes(data: Path) -> Indices:
    """The class of each sample; the same for all where there are no classes."""
    labels: Indices = _array(data / "labels.npy")
    return np.zeros(len(labels), dtype=np.int64) if _meta(data).get("target") else labels


def _build(folder: Path, fill: Callable[[Path], None]) -> Path:
    """Have the folder filled, once, whoever asks and however many at a time; a folder under its name is complete."""
    if folder.exists():
        return folder
    try:
        with FileLock(f"{folder}.lock"):
            if not folder.exists():
                _fill_and_rename(folder, fill)
    except OSError as error:
        raise _unwritable(folder.parent, error) from error
    return folder


def _fill_and_rename(folder: Path, fill: Callable[[Path], None]) -> None:
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)  # left by a process that was killed: the lock is ours now
    partial.mkdir()
    try:
        fill(partial)
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _unwritable(folder: Path, error: OSError) -> UserError:
    reason = error.strerror or str(error)
    return UserError(f"the cache folder {folder} can't be written ({reason}); set cache-dir to a folder that can.")


def _cache_root(cache_dir: str) -> Path:
    if cache_dir:
        return Path(os.path.abspath(Path(cache_dir).expanduser()))
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fedham-flwr"


def _key(*parts: Any) -> str:
    """16 hexadecimal digits that differ for different settings."""
    return hashlib.sha256(json.dumps([_FORMAT, *parts], sort_keys=True).encode()).hexdigest()[:16]


@lru_cache(maxsize=64)
def _array(path: Path) -> npt.NDArray[Any]:
    """An array of the cache, mapped once per process. Copy-on-write, since torch warns of arrays that are read-only."""
    array: npt.NDArray[Any] = np.load(path, mmap_mode="c", allow_pickle=False)
    return array


@lru_cache(maxsize=64)
def _meta(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "meta.json").read_text()))


def _open_client(data: Path, clients: Path, number: int) -> ClientData:
    """Map the arrays and cut out this client's sample numbers, which lie client by client, split by split."""
    meta = _meta(clients)
    counts = np.array(meta["counts"])
    ends = counts.cumsum().reshape(counts.shape)
    indices = torch.from_numpy(_array(clients / "indices.npy"))
    pieces = zip(SPLITS, ends[number], counts[number], strict=True)
    scaled = _meta(data)["kind"] == "table"
    return ClientData(
        features=torch.from_numpy(_array((clients if scaled else data) / "features.npy")),
        labels=torch.from_numpy(_array(data / "labels.npy")),
        splits={name: indices[int(end - count) : int(end)] for name, end, count in pieces},
        classes=tuple(_meta(data)["classes"]),
        name=meta["names"][number],
        scaling=_scaling(data, clients, number) if scaled else None,
    )


def _scaling(data: Path, clients: Path, number: int) -> tables.Scaling:
    mean, std = _array(clients / "scaling.npy")[number].tolist()
    return tables.Scaling(tables.columns_of(_meta(data)["columns"]), tuple(mean), tuple(std))
