"""A folder in which each file or each sub-folder is a client: `north.csv`, `south/`, with its name as the client's.

Of tables and texts a client is a file or a folder of files; of images a folder `<client>/<class>/<image>`. The rows of
all clients come together as one data set, with a column that says whose each one is.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedham_flwr.core.errors import UserError
from fedham_flwr.data.csv_places import joined
from fedham_flwr.data.kinds.image_folder import ENDINGS as IMAGES
from fedham_flwr.data.kinds.table_settings import AS_FOUND, TableSettings
from fedham_flwr.data.sources import BUILDERS, is_data, load, local_path

if TYPE_CHECKING:
    import datasets

OWNER = "client (file)"
"""The column that says whose each row is."""
TEXT = ".txt"
ENDINGS = (*BUILDERS, TEXT, *IMAGES)
"""Of files that are data."""
FIRST = 5
"""How many names a sentence lists before it counts the rest."""


def load_clients(source: str, copy: str, table: TableSettings = AS_FOUND) -> tuple[datasets.Dataset, list[str]]:
    """The rows of all clients, in the order of their names, and sentences about what was left out.

    Args:
        source: the `dataset` setting: a folder.
        copy: as for `sources.load`.
        table: as for `sources.load`.

    Raises:
        UserError: it is no folder, has no client, two of one name, or some whose data are not of one kind.
    """
    folder = local_path(source)
    if folder is None or not folder.is_dir():
        raise UserError(
            f"dataset is '{source}', but partitioner=\"files\" needs a folder, in which each file or sub-folder is a "
            "client."
        )
    found, left_out = _entries(folder)
    notes = [f"left out of {folder}, since they are no data: {_some(left_out)}"] if left_out else []
    if not found:
        raise UserError(
            f"the folder {folder} has no client: wanted a file for each one ({', '.join((*BUILDERS, TEXT))}), or a "
            f"folder for each one, with such files or <class>/<image> in it{'; ' if notes else ''}{''.join(notes)}."
        )
    pictures = {name: files for name, entry in found.items() if (files := _images(entry))}
    if others := [name for name in found if pictures and name not in pictures]:
        raise UserError(
            f"in the folder {folder} the client {next(iter(pictures))} has images and the client {others[0]} none: "
            "all must have data of one kind."
        )
    if not pictures:
        return _load_tables(found, copy, table), notes
    if odd := [file for name in found for file in _files(found[name]) if _is_no_picture(file)]:
        names = [file.relative_to(folder).as_posix() for file in odd]
        notes.append(f"left out of {folder}, since they are no pictures: {_some(names)}")
    return _load_images(found, pictures), notes


def _is_no_picture(file: Path) -> bool:
    return not file.name.startswith(".") and not (file.suffix.lower() in IMAGES and _is_data(file))


def _entries(folder: Path) -> tuple[dict[str, Path], list[str]]:
    """What is a client, by its name, and the names of what is none."""
    found: dict[str, Path] = {}
    left_out: list[str] = []
    for entry in sorted(folder.iterdir()):
        if not _is_data(entry):
            left_out += [entry.name] if not entry.name.startswith(".") else []
            continue
        name = entry.name if entry.is_dir() else Path(entry.name.removesuffix(".gz")).stem
        if name in found:
            raise UserError(
                f"in the folder {folder} both {found[name].name} and {entry.name} would be the client '{name}': give "
                "each client one file, or a folder of its files."
            )
        found[name] = entry
    return found, left_out


def _is_data(entry: Path) -> bool:
    if entry.name.startswith((".", "~", "#")):
        return False
    if entry.is_dir():
        return any(_is_data(Path(inner)) for inner in _files(entry))
    return entry.is_file() and (is_data(entry) or entry.suffix.lower() in (TEXT, *IMAGES))


def _files(folder: Path) -> list[Path]:
    """All files below a folder, hidden folders left out, in order."""
    found = []
    for place, inner, names in os.walk(folder, followlinks=True):
        inner[:] = sorted(name for name in inner if not name.startswith("."))
        found += [Path(place, name) for name in sorted(names)]
    return found


def _images(entry: Path) -> list[Path]:
    """The images of a client."""
    return (
        [file for file in _files(entry) if file.suffix.lower() in IMAGES and _is_data(file)] if entry.is_dir() else []
    )


def _load_images(found: Mapping[str, Path], pictures: Mapping[str, Sequence[Path]]) -> datasets.Dataset:
    """A row for each image: the file, the name of its folder as the class, the client."""
    import datasets

    files = [(name, file) for name in found for file in pictures[name]]
    if alone := [name for name, file in files if file.parent == found[name]]:
        raise UserError(
            f"images of the client {alone[0]} lie in {found[alone[0]]} itself, and wanted is a folder in it for each "
            "class."
        )
    inner = [each for entry in found.values() for each in entry.iterdir() if each.is_dir() and each.name[0] != "."]
    empty = {each.name for each in inner if not any(each.iterdir())}  # a class without samples
    classes = sorted({file.parent.name for _, file in files} | empty)
    codes = {name: number for number, name in enumerate(classes)}
    columns: dict[str, list[Any]] = {
        "image": [str(file) for _, file in files],
        "label": [codes[file.parent.name] for _, file in files],
        OWNER: [name for name, _ in files],
    }
    kinds = {"image": datasets.Image(), "label": datasets.ClassLabel(names=classes), OWNER: datasets.Value("string")}
    return datasets.Dataset.from_dict(columns, features=datasets.Features(kinds))


def _load_tables(found: Mapping[str, Path], copy: str, table: TableSettings) -> datasets.Dataset:
    """The rows of all clients' tables or texts, their columns of one type each."""
    import datasets

    parts = {name: _load_one(entry, copy, table) for name, entry in found.items()}
    first, names = next(iter(parts.values())).column_names, list(parts)
    for name, part in parts.items():
        if odd := sorted(set(first) ^ set(part.column_names)):
            where = names[0] if odd[0] in first else name
            lacking = name if odd[0] in first else names[0]
            raise UserError(f"{found[where]} has a column '{odd[0]}' and {found[lacking]} has none: all need the same.")
    kinds = {column: _common([part.features[column] for part in parts.values()]) for column in first}
    features = datasets.Features(kinds)
    ordered = [_as(part.select_columns(first), features) for part in parts.values()]
    owners = [name for name, part in parts.items() for _ in range(len(part))]
    return joined(ordered).add_column(OWNER, owners)


def _as(part: datasets.Dataset, features: Any) -> datasets.Dataset:
    """A client's rows with columns of these types."""
    import datasets

    if part.features == features:
        return part
    table = part.with_format("arrow")[:].cast(features.arrow_schema, safe=False)
    return datasets.Dataset(table, info=datasets.DatasetInfo(features=features))


def _load_one(entry: Path, copy: str, table: TableSettings) -> datasets.Dataset:
    import datasets

    texts = [file for file in (_files(entry) if entry.is_dir() else [entry]) if file.suffix.lower() == TEXT]
    if not texts or any(file.suffix.lower() in BUILDERS for file in _files(entry)):
        return load(str(entry), copy, table)
    try:
        return datasets.Dataset.from_dict({"text": [file.read_text(encoding="utf-8-sig") for file in texts]})
    except UnicodeDecodeError as error:
        raise UserError(f"a text of {entry} is not UTF-8: {error}") from error


def _common(features: Sequence[Any]) -> Any:
    """The declaration of a column that has another type at some clients: numbers are floats then, the rest is text."""
    import datasets

    if all(feature == features[0] for feature in features):
        return features[0]
    dtypes = [str(getattr(feature, "dtype", "")) for feature in features if isinstance(feature, datasets.Value)]
    known = [dtype for dtype in dtypes if dtype != "null"]
    if len(set(known)) == 1 and len(dtypes) == len(features):
        return datasets.Value(known[0])
    numbers = len(dtypes) == len(features) and all(dtype.startswith(("int", "uint", "float")) for dtype in known)
    return datasets.Value("float64" if numbers else "string")


def _some(names: Sequence[str]) -> str:
    rest = f" and {len(names) - FIRST} more" if len(names) > FIRST else ""
    return ", ".join(names[:FIRST]) + rest
