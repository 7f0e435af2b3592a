"""What client k sees: a data set, decoded once per machine, and the numbers of the samples that are the client's.

In the cache there is a folder per data set, `data-<key>`, with a folder per partitioning in it, `clients-<key>`. A
text's samples and their partitionings are in a folder in between, `windows-<key>`, since they depend on settings that
mean nothing to other data; a table's rows are in each partitioning anew, since each client scales its own.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np

from fedham_flwr.core.errors import UserError
from fedham_flwr.core.imports import is_path
from fedham_flwr.data import groups, own_changes
from fedham_flwr.data.cache import array, build, cache_root, key_of, meta_of, unwritable
from fedham_flwr.data.cache_files import fault
from fedham_flwr.data.class_tables import read_table
from fedham_flwr.data.client_data import SPLITS, ClientData
from fedham_flwr.data.client_files import OWNER
from fedham_flwr.data.columns import Columns
from fedham_flwr.data.data_settings import DataSettings
from fedham_flwr.data.dealing import Dealt, deal, key_of_dealing, owners_of, some, splitter
from fedham_flwr.data.decoding import decode
from fedham_flwr.data.kinds import table_decoding
from fedham_flwr.data.kinds import text as texts
from fedham_flwr.data.kinds.image_pixels import AS_USUAL
from fedham_flwr.data.kinds.series_settings import SeriesSettings
from fedham_flwr.data.opening import SCALED, opener
from fedham_flwr.data.partitioners import BY_NAME
from fedham_flwr.data.sources import content_key


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


def open_partitions(settings: DataSettings, clients: int, pin: str = "") -> Callable[[int], ClientData]:
    """What opens the data of any client of a simulation, by its number; the data set is looked at once.

    Args:
        settings: as for `open_partition`.
        clients: as for `open_partition`.
        pin: of `ClientData`: what the run has begun with is opened, whatever lies at the source now.

    Raises:
        UserError: as for `open_partition`, or what the run has begun with is not there any more.
    """
    root, partitioning = cache_root(settings.cache_dir), settings.partitioning
    folder = root / pin.rpartition(" ")[2]
    if not pin or fault(folder.parent) or fault(folder):
        table = read_table(partitioning.class_table) if partitioning.partitioner == "class-table" else None
        data, content = _data_folder(settings, settings.dataset, _owner_column(settings))
        key = key_of_dealing(settings, data, clients, table)
        folder = _clients_folder(data, key, settings, content, lambda: deal(settings, data, clients, table))
        if pin not in ("", pin_of(folder, root)):
            raise UserError(
                f"the data that this run began with are no longer in the cache {root}, and what lies at "
                f"'{settings.dataset}' now is something else: put the data back, or start anew"
            )
    opened_by = opener(folder.parent, folder, pin_of(folder, root))

    def opened(number: int) -> ClientData:
        if not 0 <= number < clients:
            raise UserError(
                f"partition {number} was asked for, but with {clients} clients they go from 0 to {clients - 1}."
            )
        return opened_by(number)

    return opened


def clients_there(settings: DataSettings) -> int | None:
    """How many clients the data have, where these say so; the first call decodes the data set.

    Args:
        settings: as for `open_partition`.

    Raises:
        UserError: as for `open_partition`.
    """
    partitioner = settings.partitioning.partitioner
    if is_path(settings.dataset):
        return None
    if partitioner == "class-table":
        return len(read_table(settings.partitioning.class_table).clients)
    if partitioner not in BY_NAME:
        return None
    data, _ = _data_folder(settings, settings.dataset, _owner_column(settings))
    return max(1, len(owners_of(settings, data).there))


def said_of(settings: DataSettings, pin: str) -> tuple[list[str], int]:
    """What is to be said of data that clients have opened, who and what was left out; how many clients the data have.

    Args:
        settings: as for `open_partition`.
        pin: of `ClientData`. Data that are on another machine only have nothing to say.

    Returns:
        Sentences, and the number; 0 where the data do not say so.
    """
    folder = cache_root(settings.cache_dir) / pin.rpartition(" ")[2]
    if not pin or not folder.is_dir():
        return [], 0
    notes = [note for place in (folder.parent, folder) for note in meta_of(place).get("notes", [])]
    return notes, int(meta_of(folder).get("there", 0))


def pin_of(folder: Path, root: Path) -> str:
    """The content of a simulation's data and where they lie in the cache.

    Args:
        folder: with the clients.
        root: of the cache.
    """
    return f"{meta_of(folder)['content']} {folder.relative_to(root).as_posix()}"


def _owner_column(settings: DataSettings) -> str:
    """The column that says whose each row is."""
    partitioner = settings.partitioning.partitioner
    return {"natural": settings.client_column, "files": OWNER}.get(partitioner, "")


def open_node(settings: DataSettings, path: str, training: str = "") -> ClientData:
    """The data of a node that has its own: the whole data set at `path`, split but not dealt.

    Args:
        settings: as for `open_partition`; its data set and its partitioner are not used, its seed and columns are.
        path: a local folder or file (or any other source). Its last part is the client's name.
        training: name of the training that the data are opened for; empty before the first round.

    Raises:
        UserError: as for `open_partition`, or the classes or columns are others than the training began with.
    """
    name = Path(path).name or path
    data, content = _data_folder(settings, path, client_column="")

    def deal_all() -> Dealt:
        meta = meta_of(data)
        if meta["kind"] == "text":
            texts.check_length(path, meta["characters"][0], settings.sequence_length)
        if meta["kind"] in (*SCALED, "tokens") or meta.get("target"):
            table_decoding.check_node(path, meta)
        return Dealt([name], [np.arange(len(array(data / "labels.npy")))], owned=True)

    key = key_of("node", name, settings.partitioning.seed, asdict(settings.fractions))
    folder = _clients_folder(data, key, settings, content, deal_all)
    opened = opener(data, folder)(0)
    notes = [note for place in (data, folder) for note in meta_of(place).get("notes", [])]
    own_changes.look(cache_root(settings.cache_dir), path, content, training, opened, notes)
    return opened


# ---- folders of the cache --------------------------------------------------------------------------------------------


def _data_folder(settings: DataSettings, source: str, client_column: str) -> tuple[Path, str]:
    """The folder with the samples of this source, as arrays, and the source's `content_key`."""
    root = cache_root(settings.cache_dir)
    columns = Columns(settings.feature_column, settings.label_column, client_column, settings.target)
    side, pictures = settings.image_size, settings.image
    # What came after the first version is part of the key only where it is not the default.
    named = {key: value for key, value in asdict(columns).items() if (key, value) != ("target", "auto")}
    named |= {"image-size": side} if side else {}
    named |= {} if pictures == AS_USUAL else {"image": asdict(pictures)}
    named |= settings.table_key()
    if (cuts := replace(settings.series, split="time")) != SeriesSettings():
        named["series"] = asdict(cuts)
    try:
        root.mkdir(parents=True, exist_ok=True)
        content = content_key(source, root / "digests.json")
    except OSError as error:
        raise unwritable(root, error) from error
    data = build(root / f"data-{key_of(content, named)}", lambda folder: decode(source, columns, folder, settings))
    meta = meta_of(data)
    if meta["kind"] != "text":
        return data, content
    labelled = bool(meta.get("labelled"))
    recipe = texts.recipe_of(settings.sequence_length, settings.vocabulary, settings.text, labelled)
    return build(data / f"windows-{key_of(recipe)}", lambda folder: texts.cut(data, recipe, folder)), content


def _clients_folder(data: Path, key: str, settings: DataSettings, content: str, dealt: Callable[[], Dealt]) -> Path:
    """The folder with every client's name and sample numbers, and with the rows of a table."""

    def fill(folder: Path) -> None:
        names, parts, notes, owned, there = dealt()
        split_of = splitter(settings, data, owned)
        splits = [split_of(part, name) for name, part in zip(names, parts, strict=True)]
        pieces = [[each[which] for which in SPLITS] for each in splits]
        np.save(folder / "indices.npy", np.concatenate([piece for client in pieces for piece in client]))
        counts = [[len(piece) for piece in client] for client in pieces]
        untested = [name for name, count in zip(names, counts, strict=True) if not count[SPLITS.index("test")]]
        if untested:
            notes = [*notes, f"with nothing to test on, trained but not scored: {some(untested)}"]
        meta = {"names": names, "counts": counts, "content": content, "notes": [*notes], "there": there}
        meta |= {"shift": settings.shift} if settings.shift else {}
        (folder / "meta.json").write_text(json.dumps(meta))
        if (kind := meta_of(data)["kind"]) in SCALED:
            rows = [(np.concatenate(client), client[SPLITS.index("train")]) for client in pieces]
            SCALED[kind](array(data / "features.npy"), rows, folder)
        if settings.shift:
            groups.write(data, folder, settings.shift, [np.concatenate(client) for client in pieces])

    whole = "-recordings" if settings.series.split == "recording" else ""
    return build(data / f"clients-{key}{whole}", fill)
