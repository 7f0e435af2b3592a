"""What a search may try, as study.toml says it, and as tuning.json does."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any

from fedham_flwr.core.search_space import Choice, Dimension, Range, Space
from fedham_flwr.settings import Value

RANGE_KEYS = ("low", "high", "log", "whole", "start", "source")
CHOICE_KEYS = ("values", "start", "source")
COMMON: Mapping[str, Any] = {"learning-rate": {"low": 0.002, "high": 0.2, "log": True}}
"""What is searched for every method where [tune.space] says nothing else, as it would be written there."""
EXAMPLE = "{ low = 0.001, high = 0.1, log = true } or a list of values"


def said(table: Mapping[str, Any], known: Mapping[str, Value], prefix: str = "") -> dict[str, Any]:
    """The dimensions of a table by setting, as they are written: lists, and tables with low and high or with values.

    Args:
        table: a TOML table, whose tables may be sections of settings.
        known: the settings that there are.
        prefix: of all keys.
    """
    found: dict[str, Any] = {}
    for key, value in table.items():
        full = f"{prefix}{key}"
        section = isinstance(value, Mapping) and full not in known and not {"low", "high", "values"} & value.keys()
        found |= said(value, known, f"{full}.") if section else {full: value}
    return found


def dimension(given: Any, usual: Value) -> Dimension:
    """A dimension as it is written.

    Args:
        given: a list, or a table.
        usual: the value that the setting has without a search: its type is that of all values, and a search starts
            from it where nothing else is said, or from the nearest value.

    Raises:
        ValueError: it is none; the text says why and what was wanted.
    """
    if isinstance(given, list):
        given = {"values": given}
    if not isinstance(given, Mapping):
        raise ValueError(f"{given!r} is nothing to search: wanted {EXAMPLE}")
    keys = CHOICE_KEYS if "values" in given else RANGE_KEYS
    for key in given:
        if key not in keys:
            near = difflib.get_close_matches(key, keys, n=1)
            raise ValueError(f"there is no {key}{f' (did you mean {near[0]}?)' if near else ''}: wanted {EXAMPLE}")
    return _choice(given, usual) if "values" in given else _range(given, usual)


def _choice(given: Mapping[str, Any], usual: Value) -> Choice:
    values = given["values"]
    if not isinstance(values, list) or not all(type(value) in (bool, int, float, str) for value in values):
        raise ValueError(f"values = {values!r}: wanted a list of truth values, numbers or texts")
    cast = [_like(value, usual) for value in values]
    same = [value for value in cast if repr(value) == repr(usual)]
    start = _like(given["start"], usual) if "start" in given else (same or cast or [usual])[0]
    return Choice(tuple(cast), start, str(given.get("source", "")))


def _range(given: Mapping[str, Any], usual: Value) -> Range:
    if isinstance(usual, bool | str):
        raise ValueError(f"a setting that is {usual!r} has no range: wanted a list of values")
    for key in ("low", "high", *(["start"] if "start" in given else [])):
        if type(given.get(key)) not in (int, float):
            raise ValueError(f"{key} is {given[key]!r}" if key in given else f"there is no {key}: wanted {EXAMPLE}")
    whole = isinstance(usual, int)
    for key, wanted in (("log", None), ("whole", whole)):
        value = given.get(key, False if wanted is None else wanted)
        if type(value) is not bool or (wanted is not None and value is not wanted and whole):
            raise ValueError(f"{key} = {value!r}: wanted {'true or false' if wanted is None else str(wanted).lower()}")
    low, high = given["low"], given["high"]
    start = given.get("start", min(max(usual, low), high))
    integer = bool(given.get("whole", whole))
    return Range(low, high, start, bool(given.get("log", False)), integer, str(given.get("source", "")))


def _like(value: Any, usual: Value) -> Any:
    """A value in the type that the setting has: 1 of a setting that is a number with decimals is 1.0."""
    return float(value) if isinstance(usual, float) and type(value) is int else value


def ends(found: Dimension) -> Iterator[Value]:
    """Values of a dimension with which all of them can be checked.

    Args:
        found: the dimension.
    """
    if isinstance(found, Choice):
        yield from found.values
    else:
        yield from (int(value) if found.whole else value for value in (found.low, found.high, found.start))


def to_json(space: Space) -> dict[str, dict[str, Any]]:
    """A space as tuning.json has it.

    Args:
        space: setting -> what is searched.
    """
    return {key: {**asdict(each), **_lists(each)} for key, each in space.items()}


def _lists(each: Dimension) -> dict[str, Any]:
    return {"values": list(each.values)} if isinstance(each, Choice) else {}
