"""A schema: a TOML file that says what each column of a table holds, the same at all sites.

[columns."age (years)"]
kind = "number"
range = [0, 120]
unit = "years"

[columns.sex]
kind = "category"          # or "ordered", "boolean", "date"
categories = ["F", "M"]

[label]
column = "diagnosis"
kind = "class"             # or "value"
classes = ["healthy", "sick"]
"""

from __future__ import annotations

import difflib
import hashlib
import json
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from fedham_flwr.core.errors import UserError, first_line
from fedham_flwr.data.kinds.table_column import Column

PARTS = ("month", "weekday", "hour")
"""Of a date, each as sine and cosine."""
_ALLOWED: Mapping[str, tuple[str, ...]] = {
    "number": ("range", "unit"), "category": ("categories",), "ordered": ("categories",), "boolean": (),
    "date": ("format", "parts"),
}  # fmt: skip
"""What may be said of a column of each kind, beside the kind."""


@dataclass(frozen=True)
class Label:
    """What is to be learned.

    Attributes:
        column: its name.
        kind: class or value.
        classes: in the order of their numbers; none of a value.
    """

    column: str
    kind: str
    classes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Schema:
    """What the columns of a table hold.

    Attributes:
        columns: in the order of the file.
        label: what is to be learned; None: the settings say.
        digest: of all that the file says, but for comments and the order of keys.
    """

    columns: tuple[Column, ...]
    label: Label | None
    digest: str

    @property
    def names(self) -> list[str]:
        """Of the columns."""
        return [column.name for column in self.columns]


def read_schema(path: str) -> Schema | None:
    """A schema out of its file; None without a path.

    Args:
        path: the setting `table.schema`.

    Raises:
        UserError: there is no such file, or it says something else than a schema does.
    """
    if not path:
        return None
    try:
        text = Path(path).expanduser().read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or first_line(error)
        raise UserError(f"table.schema is '{path}', which can't be read ({reason}); wanted a TOML file.") from error
    return _parsed(text, path)


@lru_cache(maxsize=8)
def _parsed(text: str, path: str) -> Schema:
    try:
        given = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"{path} is no TOML file: {first_line(error)}.") from error
    _check_keys(path, "the file", given, ("columns", "label"))
    columns = given.get("columns", {})
    if not isinstance(columns, dict) or not (columns or "label" in given):
        raise UserError(f"{path} declares no columns: wanted a table [columns.NAME] for each one.")
    declared = tuple(_column(path, name, said) for name, said in columns.items())
    label = _label(path, given["label"], columns) if "label" in given else None
    digest = hashlib.sha256(json.dumps(given, sort_keys=True, default=str).encode()).hexdigest()[:16]
    return Schema(declared, label, digest)


def _column(path: str, name: str, said: Any) -> Column:
    place = f'[columns."{name}"]'
    if not isinstance(said, dict):
        raise UserError(f'{path}: {place} is {said!r}; wanted a table with kind = "number", for instance.')
    kind = str(said.get("kind"))
    if kind not in _ALLOWED:
        raise UserError(f"{path}: {place} has kind = {kind!r}; wanted one of {', '.join(_ALLOWED)}.")
    _check_keys(path, place, said, ("kind", *_ALLOWED[kind]))
    names = _names(path, place, "categories", said) if "categories" in _ALLOWED[kind] else ()
    low, high = _range(path, place, said.get("range"))
    parts = said.get("parts", ["month", "weekday"]) if kind == "date" else []
    if not isinstance(parts, list) or not set(parts) <= set(PARTS):
        raise UserError(f"{path}: {place} has parts = {parts!r}; wanted some of {', '.join(PARTS)}.")
    return Column(name, names, kind, parts=tuple(parts), low=low, high=high, format=_text(path, place, "format", said))


def _label(path: str, said: Any, columns: Mapping[str, Any]) -> Label:
    if not isinstance(said, dict) or not isinstance(said.get("column"), str):
        raise UserError(f'{path}: [label] names no column; wanted column = "NAME".')
    kind = said.get("kind", "class")
    if kind not in ("class", "value"):
        raise UserError(f"{path}: [label] has kind = {kind!r}; wanted class or value.")
    _check_keys(path, "[label]", said, ("column", "kind", *(["classes"] if kind == "class" else ["unit"])))
    if said["column"] in columns:
        raise UserError(f"{path} declares '{said['column']}' as a column and as the label: wanted one of both.")
    return Label(said["column"], kind, _names(path, "[label]", "classes", said) if kind == "class" else ())


def _names(path: str, place: str, key: str, said: Mapping[str, Any]) -> tuple[str, ...]:
    """Categories or classes: at least one, none twice; numbers are taken as they are written."""
    given = said.get(key)
    plain = isinstance(given, list) and given and all(isinstance(each, str | int | bool) for each in given)
    if not plain:
        raise UserError(f"{path}: {place} has {key} = {given!r}; wanted a list of names.")
    names = tuple(str(each).lower() if isinstance(each, bool) else str(each).strip() for each in given or ())
    if twice := next((name for at, name in enumerate(names) if name in names[:at]), None):
        raise UserError(f"{path}: {place} has '{twice}' twice in {key}.")
    return names


def _range(path: str, place: str, given: Any) -> tuple[float | None, float | None]:
    if given is None:
        return None, None
    numbers = isinstance(given, list) and len(given) == 2 and all(type(each) in (int, float) for each in given)
    if not numbers or not given[0] <= given[1]:
        raise UserError(f"{path}: {place} has range = {given!r}; wanted [lowest, highest].")
    return float(given[0]), float(given[1])


def _text(path: str, place: str, key: str, said: Mapping[str, Any]) -> str:
    given = said.get(key, "")
    if not isinstance(given, str):
        raise UserError(f"{path}: {place} has {key} = {given!r}; wanted a text.")
    return given


def _check_keys(path: str, place: str, said: Mapping[str, Any], known: Sequence[str]) -> None:
    for key in said:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            meant = f" (did you mean {near[0]}?)" if near else ""
            raise UserError(f"{path}: {place} says {key!r}{meant}; wanted {', '.join(known)}.")
