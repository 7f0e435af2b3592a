"""A source decoded into plain arrays, once, into a folder with a `meta.json`, which names its kind.

Images have `features.npy` (uint8 [N, H, W, C]), `labels.npy` (int64 [N]) and, with a client column, `owners.npy`
(int64 [N]). Tables too, but with float32 [N, F] features, NaN where missing. A new kind of data is a line of `KINDS`.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from fedham_flwr.core.errors import UserError
from fedham_flwr.data import row_hashes, targets
from fedham_flwr.data.client_files import OWNER, load_clients
from fedham_flwr.data.columns import (
    Columns,
    find_feature,
    find_label,
    find_label_of_table,
    kind_of_column,
    named,
    table_columns,
    values_of,
)
from fedham_flwr.data.data_settings import DataSettings
from fedham_flwr.data.kinds import image as images
from fedham_flwr.data.kinds import series, table_decoding, table_kinds
from fedham_flwr.data.kinds import text as texts
from fedham_flwr.data.kinds.image_digits import decode_digits
from fedham_flwr.data.kinds.table_column import Column
from fedham_flwr.data.labels import codes_of, label_codes, with_labels
from fedham_flwr.data.schema import Schema, read_schema
from fedham_flwr.data.sources import load

if TYPE_CHECKING:
    import datasets


class Rows(NamedTuple):
    """What is decoded, and where to.

    Attributes:
        data: all rows.
        columns: which columns are what, as the settings say.
        features: the columns of the samples.
        folder: exists; what is decoded is written there.
        settings: all settings of the data.
    """

    data: datasets.Dataset
    columns: Columns
    features: list[str]
    folder: Path
    settings: DataSettings


class Kind(NamedTuple):
    """A kind of data.

    Attributes:
        what: its samples, in sentences: images, a table.
        finds: the columns of the samples; none if the data set is of another kind.
        decode: writes the arrays, and returns the meta data without the kind; with `recipe`, which says how raw rows
            become features, and `notes`, what is to be said.
    """

    what: str
    finds: Callable[[datasets.Dataset, Columns, DataSettings], list[str]]
    decode: Callable[[Rows], dict[str, Any]]


def decode(source: str, columns: Columns, folder: Path, settings: DataSettings) -> None:
    """Write the arrays and the meta data of a source into this folder, which exists and is empty.

    Args:
        source: the `dataset` setting.
        columns: which columns are what.
        folder: where.
        settings: what each kind of data is decoded by, such as `image-size`.

    Raises:
        UserError: the source can't be read or reached, or its columns aren't what is needed.
        OSError: the folder can't be written.
    """
    if source == "digits":
        decode_digits(columns, folder, settings.image_size, settings.image)
        return
    # The library writes a copy of the files it reads; of a local source it isn't needed for longer than decoding takes.
    with tempfile.TemporaryDirectory(dir=folder) as copy:
        table = settings.table
        ours = columns.client == OWNER
        data, notes = load_clients(source, copy, table) if ours else (load(source, copy, table), [])
        _decode_rows(data, columns, folder, settings, notes)


def _decode_rows(
    data: datasets.Dataset, columns: Columns, folder: Path, settings: DataSettings, notes: Sequence[str] = ()
) -> None:
    kind, features = _kind_of(data, columns, settings)
    if settings.image_size and kind != "image":
        raise UserError(
            f"image-size={settings.image_size} resizes images, and the data set is {KINDS[kind].what}: set 0."
        )
    meta = KINDS[kind].decode(Rows(data, columns, features, folder, settings)) | {"kind": kind}
    meta["recipe"] = {"kind": kind} | meta.get("recipe", {})
    meta["notes"] = [*notes, *meta.get("notes", [])]
    if not (meta.get("ordered") or (folder / row_hashes.FILE).is_file()):
        row_hashes.write(data, [*features, *meta.get("labels", [])], folder)
    (folder / "meta.json").write_text(json.dumps(meta))


def _kind_of(data: datasets.Dataset, columns: Columns, settings: DataSettings) -> tuple[str, list[str]]:
    """The first kind that finds its columns; the last one finds some, or says what is wrong."""
    for kind, each in KINDS.items():
        if features := each.finds(data, columns, settings):
            return kind, features
    raise AssertionError("the last kind finds its columns or raises")


# ---- kinds of data: what writes the folder and returns its meta data ------------------------------------------------


def _find_table(data: datasets.Dataset, columns: Columns, settings: DataSettings) -> list[str]:
    schema = read_schema(settings.table.schema)
    return table_columns(data, columns, schema.names if schema else ())


def _find_images(data: datasets.Dataset, columns: Columns, _: DataSettings) -> list[str]:
    feature = find_feature(data, columns)
    return [feature] if kind_of_column(data.features[feature]) == "Image" else []


def _find_texts(data: datasets.Dataset, columns: Columns, _: DataSettings) -> list[str]:
    return [find_feature(data, columns)]


def _decode_images(rows: Rows) -> dict[str, Any]:
    targets.check(rows.columns, "images")
    settings = rows.settings
    rows, meta = _decode_targets(rows)
    decoded = images.decode(
        rows.data, rows.features[0], rows.folder / "features.npy", settings.image_size, settings.image
    )
    if len(decoded.kept) < len(rows.data):
        _, meta = _decode_targets(rows._replace(data=rows.data.select(decoded.kept)))
    return meta | {"recipe": decoded.recipe, "notes": [decoded.note] if decoded.note else []}


def _decode_table(rows: Rows) -> dict[str, Any]:
    table, missing = rows.settings.table, rows.settings.table.missing.split()
    schema = read_schema(table.schema)
    rows = rows._replace(columns=_by_schema(rows.columns, schema))
    targets.check(rows.columns, "a table")
    rows, meta = _decode_targets(rows, schema)
    declared = [*(schema.columns if schema else ()), *_agreed(rows.settings)]
    columns = table_kinds.columns_of_table(rows.data, rows.features, table, declared)
    table_decoding.decode(rows.data, columns, rows.folder / "features.npy", table)
    described = [column.described() for column in columns]
    more, known = {"schema": schema.digest} if schema else {}, {column.name for column in declared}
    more |= {"decimal": table.decimal} if table.decimal else {}
    meta["found"] = [each.name for each in columns if each.kind == "category" and each.name not in known]
    return meta | {"columns": described, "recipe": {"columns": described, "missing": missing, **more}}


def _agreed(settings: DataSettings) -> list[Column]:
    """The columns of categories that the sites have agreed upon."""
    agreed = json.loads(settings.categories) if settings.categories else {}
    return [Column(name, tuple(words), "category") for name, words in agreed.items()]


def _by_schema(columns: Columns, schema: Schema | None) -> Columns:
    """With the label that a schema names, where the settings name none."""
    if schema is None or schema.label is None or columns.label not in ("", schema.label.column):
        return columns
    value = schema.label.kind == "value" and columns.target == "auto"
    return replace(columns, label=f"'{schema.label.column}'", target="value" if value else columns.target)


def _decode_targets(rows: Rows, schema: Schema | None = None) -> tuple[Rows, dict[str, Any]]:
    """Write whose each row is and what is to be learned of it; the rows that have a label, and their meta data."""
    columns, table = rows.columns, rows.settings.table
    inputs = rows.features if kind_of_column(rows.data.features[rows.features[0]]) != "Image" else []
    if columns.target in targets.CLASSLESS:
        names = targets.names_of(rows.data, columns, inputs)
        rows = rows._replace(data=with_labels(rows.data, names, table.unlabelled, table.missing.split()))
        meta = targets.decode(rows.data, columns.target, names, rows.folder, table)
    else:
        names = [find_label_of_table(rows.data, columns, inputs) if inputs else find_label(rows.data, columns.label)]
        declared = schema.label.classes if schema and schema.label and [schema.label.column] == names else ()
        rows = rows._replace(data=with_labels(rows.data, names, table.unlabelled, table.missing.split(), declared))
        labels, classes = label_codes(rows.data, names[0], declared)
        np.save(rows.folder / "labels.npy", labels)
        known = bool(declared) or kind_of_column(rows.data.features[names[0]]) == "ClassLabel"
        meta = {"classes": classes} | ({"declared": known} if inputs else {})
    row_hashes.write(rows.data, [*rows.features, *names], rows.folder)  # of the rows that are left
    return rows, meta | {"labels": names} | _write_owners(rows.data, columns, rows.folder)


def _write_owners(data: datasets.Dataset, columns: Columns, folder: Path) -> dict[str, Any]:
    owners, names = _owners(data, columns.client)
    if owners is not None:
        np.save(folder / "owners.npy", owners)
    return dict(names)


def _decode_texts(rows: Rows) -> dict[str, Any]:
    columns, feature = rows.columns, rows.features[0]
    targets.check(columns, "texts")
    if columns.target == "next-token" and columns.label:
        raise UserError(f"label-column is '{columns.label}', but target is next-token, which takes no labels; drop it.")
    owners, meta = None, dict[str, Any]()
    if columns.target == "next-token" or (columns.target == "auto" and not columns.label):
        owners, meta = _owners(rows.data, columns.client)
    else:
        rows, meta = _decode_targets(rows)
        meta["labelled"] = True
    said = values_of(rows.data, feature, "feature-column")
    return {"column": feature, "characters": texts.join(said, owners, rows.folder)} | meta


def _decode_series(rows: Rows) -> dict[str, Any]:
    targets.check(rows.columns, "series")
    recipe = series.recipe_of(rows.data, rows.features, rows.settings.series, rows.settings.table)
    rows, meta = _decode_targets(rows)
    return meta | series.decode(rows.data, recipe, rows.settings.series, rows.folder)


def _owners(data: datasets.Dataset, column: str) -> tuple[npt.NDArray[np.int64] | None, dict[str, Any]]:
    """Whose each row is and the owners' names, if there is a client column."""
    if not column:
        return None, {}
    owners, names = codes_of(data, named(data, "client-column", column), "client-column")
    return owners, {"owners": names}


KINDS: Mapping[str, Kind] = {
    "series": Kind("series", series.find, _decode_series),
    "table": Kind("a table", _find_table, _decode_table),
    "image": Kind("images", _find_images, _decode_images),
    "text": Kind("text", _find_texts, _decode_texts),
}
"""The kinds of data, in the order in which they are tried: `find_feature` raises where nothing is found, so that what
takes other columns stands before it."""
