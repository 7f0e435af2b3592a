"""Dimensions of a search space as TOML has them: a list is a choice, a table a range."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TypeGuard

from fedham_flwr.core.search_space import Choice, Dimension, Range, Value

FIELDS = ("low", "high", "log", "whole", "start")


def read(given: object, own: Value) -> Dimension:
    """A dimension of a setting.

    Args:
        given: a list of values, or a table of `FIELDS`, of which the first two must be there.
        own: the value of the setting in a run that is not tuned. A search starts from it if it is among them; else from
            the first of a list, or the middle of a range, which is the geometric mean of a logarithmic one.

    Raises:
        ValueError: it is neither, or not of the setting's type.
    """
    if isinstance(given, list):
        return _choice(given, own)
    if isinstance(given, Mapping):
        return _range(given, own)
    raise ValueError("wanted a list of values, or a table {low, high}")


def _choice(given: Sequence[object], own: Value) -> Choice:
    values = tuple(_typed(value, own) for value in given)
    return Choice(values, own if own in values else next(iter(values), own))


def _typed(value: object, own: Value) -> Value:
    """A value as the setting has it: 1 of a setting of numbers is 1.0."""
    if isinstance(own, float) and _is_number(value):
        return float(value)
    if isinstance(value, bool | int | float | str) and type(value) is type(own):
        return value
    raise ValueError(f"{value!r} is not of its type: wanted values such as {own!r}")


def _range(given: Mapping[str, object], own: Value) -> Range:
    if not _is_number(own):
        raise ValueError(f"it has no range: wanted a list of values such as {own!r}")
    if strange := [key for key in given if key not in FIELDS]:
        raise ValueError(f"there is no {', '.join(strange)} of a range: wanted {', '.join(FIELDS)}")
    flags = [given.get("log", False), given.get("whole", isinstance(own, int))]
    if not all(isinstance(flag, bool) for flag in flags):
        raise ValueError("log and whole are true or false")
    log, whole = map(bool, flags)
    if isinstance(own, int) and not whole:
        raise ValueError("it takes whole numbers: wanted whole = true, or nothing of it")
    low, high = (_number(given, key) for key in ("low", "high"))
    start = _number(given, "start") if "start" in given else _start(low, high, float(own), log, whole)
    return Range(low, high, start, log, whole)


def _start(low: float, high: float, own: float, log: bool, whole: bool) -> float:
    if low <= own <= high and (not whole or own == round(own)):
        return own
    middle = math.sqrt(low * high) if log and low > 0 else (low + high) / 2
    return float(round(middle)) if whole else middle


def _number(given: Mapping[str, object], key: str) -> float:
    value = given.get(key)
    if not _is_number(value):
        raise ValueError(f"wanted a number for {key}, not {value!r}" if key in given else f"it has no {key}")
    return float(value)


def _is_number(value: object) -> TypeGuard[int | float]:
    return isinstance(value, int | float) and not isinstance(value, bool)
