"""What client k sees: a data set, decoded once per machine, and the numbers of the samples that are the client's.

The cache is a folder per data set, `data-<key>`, with a folder per partitioning in it, `clients-<key>`; the keys are
digests of content and settings, so nothing in it goes stale. All processes of a machine map the same pages, and
opening a client costs milliseconds: a client process may live for one message only.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from filelock import FileLock
from torch import Tensor

from fedham_flwr.errors import UserError
from fedham_flwr.partitions import Fractions, Indices, Partitioning, partition, split
from fedham_flwr.seeding import stream
from fedham_flwr.sources import Columns, content_key, decode

SPLITS = ("train", "validation", "test")
_FORMAT = 1  # of the cache; to be raised whenever decoding, dealing or splitting gives another result


@dataclass(frozen=True)
class DataSettings:
    """Which data set, and how it is dealt.

    Attributes:
        dataset: digits, a local folder or file, or a name on the Hugging Face Hub.
        feature_column: empty: the only image column.
        label_column: empty: the only class-label column.
        client_column: names the client of each sample; read by the natural partitioner only.
        partitioning: who holds which sample.
        fractions: of each client's samples, for validation and test.
        cache_dir: empty: fedham-flwr in the user's cache folder.
    """

    dataset: str = "digits"
    feature_column: str = ""
    label_column: str = ""
    client_column: str = ""
    partitioning: Partitioning = field(default_factory=Partitioning)
    fractions: Fractions = field(default_factory=Fractions)
    cache_dir: str = ""


@dataclass(frozen=True)
class ClientData:
    """One client's view of a data set.

    Attributes:
        features: uint8 [N, H, W, C], all samples of the data set, mapped from disk: index it, never copy it whole.
        labels: int64 [N].
        splits: "train", "validation" and "test" -> int64, the sample numbers of this client.
        classes: K names.
        name: the partition's number, or the owner's name for the natural partitioner.
    """

    features: Tensor
    labels: Tensor
    splits: Mapping[str, Tensor]
    classes: tuple[str, ...]
    name: str

    @property
    def shape(self) -> tuple[int, int, int]:
        """One sample as a network sees it: (C, H, W)."""
        height, width, channels = self.features.shape[1:]
        return channels, height, width

    def counts(self) -> dict[str, int]:
        """Samples per split."""
        return {name: len(indices) for name, indices in self.splits.items()}

    def label_counts(self, which: str) -> list[int]:
        """Samples of each of the K classes in this split."""
        return torch.bincount(self.labels[self.splits[which]], minlength=len(self.classes)).tolist()


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
    natural = settings.partitioning.partitioner == "natural"
    data = _data_folder(settings, settings.dataset, client_column=settings.client_column if natural else "")

    def deal() -> tuple[list[str], list[Indices]]:
        labels, meta = _array(data / "labels.npy"), _meta(data)
        owners = _array(data / "owners.npy") if "owners" in meta else None
        parts = partition(settings.partitioning, labels, clients, owners)
        if owners is None:
            return [str(i) for i in range(clients)], parts
        return [meta["owners"][owners[part[0]]] for part in parts], parts

    key = _key(asdict(settings.partitioning), asdict(settings.fractions), clients)
    return _open_client(data, _clients_folder(data, key, settings, deal), number)


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
        return [name], [np.arange(len(_array(data / "labels.npy")))]

    key = _key("node", name, settings.partitioning.seed, asdict(settings.fractions))
    return _open_client(data, _clients_folder(data, key, settings, deal), 0)


# ---- the cache -------------------------------------------------------------------------------------------------------


def _data_folder(settings: DataSettings, source: str, client_column: str) -> Path:
    """The folder with the decoded arrays of this source."""
    root = _cache_root(settings.cache_dir)
    columns = Columns(settings.feature_column, settings.label_column, client_column)
    try:
        root.mkdir(parents=True, exist_ok=True)
        content = content_key(source, root / "digests.json")
    except OSError as error:
        raise _unwritable(root, error) from error
    return _build(root / f"data-{_key(content, asdict(columns))}", lambda folder: decode(source, columns, folder))


def _clients_folder(
    data: Path, key: str, settings: DataSettings, deal: Callable[[], tuple[list[str], list[Indices]]]
) -> Path:
    """The folder with every client's name and sample numbers."""

    def fill(folder: Path) -> None:
        names, parts = deal()
        labels, pieces = _array(data / "labels.npy"), []
        for name, part in zip(names, parts, strict=True):
            rng = stream(settings.partitioning.seed, "split", client=name)
            splits = split(part, labels, settings.fractions, rng, client=name)
            pieces.append([splits[which] for which in SPLITS])
        np.save(folder / "indices.npy", np.concatenate([piece for client in pieces for piece in client]))
        counts = [[len(piece) for piece in client] for client in pieces]
        (folder / "meta.json").write_text(json.dumps({"names": names, "counts": counts}))

    return _build(data / f"clients-{key}", fill)


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
    return ClientData(
        features=torch.from_numpy(_array(data / "features.npy")),
        labels=torch.from_numpy(_array(data / "labels.npy")),
        splits={name: indices[int(end - count) : int(end)] for name, end, count in pieces},
        classes=tuple(_meta(data)["classes"]),
        name=meta["names"][number],
    )


# ---- batches ---------------------------------------------------------------------------------------------------------


def to_float(batch: Tensor) -> Tensor:
    """uint8 [b, H, W, C] in 0..255 -> float32 [b, C, H, W] in -1..1, in channels_last memory (as it lies already)."""
    return batch.permute(0, 3, 1, 2).to(torch.float32).div_(127.5).sub_(1.0)


def augment(batch: Tensor, generator: torch.Generator, pad: int = 4) -> Tensor:
    """Shift each image by up to `pad` pixels in each direction, and mirror every second one, at random.

    What is shifted in is -1, the minimum of the scaled range: black. Small images are shifted by an eighth of their
    height at most, but by 1 pixel at least: 4 pixels of 32, 1 of 8.

    Args:
        batch: float32 [b, C, H, W] in -1..1, as `to_float` gives it.
        generator: on the CPU; draws rows, then columns, then mirrorings.
        pad: pixels, at least 0.

    Returns:
        A new tensor like `batch`, in channels_last memory.
    """
    b, channels, height, width = batch.shape
    pad = min(pad, max(1, height // 8))
    down, right = torch.randint(0, 2 * pad + 1, (2, b, 1), generator=generator)
    mirrored = torch.randint(0, 2, (b, 1), generator=generator, dtype=torch.bool)
    rows = down + torch.arange(height)  # [b, H], of the padded image
    columns = right + torch.where(mirrored, torch.arange(width).flip(0), torch.arange(width))  # [b, W]
    padded = torch.nn.functional.pad(batch.permute(0, 2, 3, 1), (0, 0, pad, pad, pad, pad), value=-1.0)
    # One flat list of pixel numbers: picking whole pixels is 3 times as fast as indexing with three arrays.
    first = torch.arange(b)[:, None, None] * padded.shape[1]
    pixels = (first + rows[:, :, None]) * padded.shape[2] + columns[:, None, :]
    picked = padded.reshape(-1, channels).index_select(0, pixels.flatten().to(batch.device))
    return picked.view(b, height, width, channels).permute(0, 3, 1, 2)
