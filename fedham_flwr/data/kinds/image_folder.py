"""A folder of pictures -> rows: a folder for each class, or a `metadata.csv` beside the pictures, which says more.

The class of a picture is the folder that it lies in. Folders called train, validation and test at the top are official
splits, and no classes. A class folder that is empty is a class without samples, so that sites that lack a class can
have the same classes as the others. `datasets` is imported by the function that makes rows.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

from fedham_flwr.core.errors import UserError

if TYPE_CHECKING:
    import datasets

log = logging.getLogger("fedham_flwr")

ENDINGS = (
    ".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm", ".pbm", ".pnm",
    ".tga", ".jp2",
)  # fmt: skip
"""Of files that are pictures, in small letters or capitals."""
METADATA = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
"""Files that say more of the pictures beside them, by their column `file_name`."""
NAME = "file_name"
_SPLITS = {
    "train": 0, "training": 0, "validation": 1, "valid": 1, "val": 1, "dev": 1, "test": 2, "testing": 2, "eval": 2,
}  # fmt: skip
_FIRST = 5

RowsOf = Callable[[Path], "datasets.Dataset"]


@dataclass(frozen=True)
class Found:
    """What lies in a folder.

    Attributes:
        root: the folder.
        pictures: their paths below it, in order: those of train first.
        metadata: paths of the files that say more of them.
        empty: folders without anything in them.
        others: files that are no pictures, hidden ones left out.
    """

    root: Path
    pictures: list[PurePath] = field(default_factory=list)
    metadata: list[PurePath] = field(default_factory=list)
    empty: list[PurePath] = field(default_factory=list)
    others: list[PurePath] = field(default_factory=list)


def find(folder: Path, tables: Iterable[str]) -> Found | None:
    """What a folder of pictures holds; None if it is a folder of something else.

    Args:
        folder: to look at, with all folders in it.
        tables: endings of files that are data of their own: of these a folder of pictures has fewer than pictures.
    """
    found, seen, endings = Found(folder), set(), tuple(tables)
    for place, inner, names in os.walk(folder, followlinks=True):
        here = PurePath(place).relative_to(folder)
        real = os.path.realpath(place)
        if real in seen:  # by a link
            inner.clear()
            continue
        seen.add(real)
        inner[:] = sorted(name for name in inner if not _is_hidden(name))
        shown = sorted(name for name in names if not name.startswith("."))
        if not shown and not inner:
            found.empty.append(here)
        for name in shown:
            _sort_in(found, here / name)
    if len(found.pictures) <= sum(each.suffix.lower() in endings for each in found.others):
        return None
    tops = {each.parts[0] for each in found.pictures}
    split = tops <= _SPLITS.keys()
    found.pictures.sort(key=lambda each: (_SPLITS[each.parts[0]] if split else 0, each.as_posix()))
    return found


def _is_hidden(folder: str) -> bool:
    return folder.startswith((".", "__"))


def _sort_in(found: Found, file: PurePath) -> None:
    if file.name.lower() in METADATA:
        found.metadata.append(file)
    elif file.suffix.lower() in ENDINGS and not file.name.startswith(("~", "#")):
        found.pictures.append(file)
    else:
        found.others.append(file)


def rows(found: Found, rows_of: RowsOf) -> datasets.Dataset:
    """A row for each picture: `image`, `label` where there are folders of classes, and the columns of the metadata.

    What is left out is said.

    Args:
        found: what lies in the folder.
        rows_of: reads a file of metadata.

    Raises:
        UserError: pictures lie at different depths, or the metadata name pictures that are not there.
    """
    import datasets

    notes = [f"left out, since they are no pictures: {_some(found.others)}"] if found.others else []
    pictures = found.pictures
    columns: dict[str, list[Any]] = {}
    kinds: dict[str, Any] = {}
    if found.metadata:
        pictures, columns, kinds, said = _with_metadata(found, rows_of)
        notes += said
    if "label" not in columns and (folders := _classes(found, pictures, bool(columns), notes)):
        classes, labels = folders
        columns, kinds = {"label": labels} | columns, {"label": datasets.ClassLabel(names=classes)} | kinds
    columns = {"image": [str(found.root / each) for each in pictures]} | columns
    kinds = {"image": datasets.Image()} | kinds
    for note in notes:
        log.warning("dataset %s: %s", found.root, note)
    return datasets.Dataset.from_dict(columns, features=datasets.Features(kinds))


# ---- classes ---------------------------------------------------------------------------------------------------------


def _classes(
    found: Found, pictures: Sequence[PurePath], described: bool, notes: list[str]
) -> tuple[list[str], list[int]] | None:
    """The names of the classes and the number of each picture's; None where there are no folders of classes."""
    skipped = int(all(each.parts[0] in _SPLITS for each in pictures))
    depths = {len(each.parts) - 1 - skipped: each for each in reversed(pictures)}
    if len(depths) > 1 and not described:
        (_, one), (_, other) = sorted(depths.items())[:2]
        raise UserError(
            f"in the folder {found.root} the pictures {one} and {other} lie at different depths: wanted a folder for "
            "each class, with its pictures in it and no further folders."
        )
    depth = next(iter(depths))
    if len(depths) > 1 or not depth:
        return None
    empty = [each.name for each in found.empty if len(each.parts) - _is_split(each, skipped) == depth]
    there = sorted({each.parent.name for each in pictures})
    without = sorted(set(empty) - set(there))
    if without:
        notes.append(f"{_some(without)}: folders without pictures; each stays a class, without samples")
    if depth > 1:
        notes.append(f"pictures lie {depth} folders deep, and the innermost is the class: {_some(there)}")
    classes = sorted([*there, *without])
    codes = {name: number for number, name in enumerate(classes)}
    return classes, [codes[each.parent.name] for each in pictures]


def _is_split(folder: PurePath, skipped: int) -> int:
    return int(bool(skipped and folder.parts and folder.parts[0] in _SPLITS))


# ---- metadata --------------------------------------------------------------------------------------------------------


def _with_metadata(
    found: Found, rows_of: RowsOf
) -> tuple[list[PurePath], dict[str, list[Any]], dict[str, Any], list[str]]:
    """The pictures that have a row of metadata, the columns of that, their kinds, and what was left out."""
    there = set(found.pictures)
    pictures: list[PurePath] = []
    columns: dict[str, list[Any]] = {}
    kinds: dict[str, Any] = {}
    for file in found.metadata:
        data = rows_of(found.root / file)
        names = [name for name in data.column_names if name != NAME]
        if NAME not in data.column_names:
            raise UserError(f"{found.root / file} has no column {NAME}, which says of which picture each row is.")
        if pictures and names != list(columns):
            raise UserError(f"{found.root / file} has other columns than {found.root / found.metadata[0]}.")
        for row, name in enumerate(data[NAME]):
            picture = PurePath(os.path.normpath(file.parent / str(name)))
            if picture not in there:
                raise UserError(f"{found.root / file} names '{name}' in row {row}, and there is no such picture.")
            pictures.append(picture)
        for name in names:
            columns.setdefault(name, []).extend(data[name])
            kinds.setdefault(name, data.features[name])
    lacking = [each for each in found.pictures if each not in set(pictures)]
    said = [f"{len(lacking)} pictures that the metadata don't name are left out: {_some(lacking)}"] if lacking else []
    return pictures, columns, kinds, said


def _some(names: Sequence[object]) -> str:
    rest = f" and {len(names) - _FIRST} more" if len(names) > _FIRST else ""
    return ", ".join(map(str, names[:_FIRST])) + rest
