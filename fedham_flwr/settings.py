"""Settings as they are written, by key: parsed into those of a run, and made flat again.

They are parsed once, at the door of either app; below that, functions take plain arguments.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from pydantic import ValidationError, create_model

from fedham_flwr import registry
from fedham_flwr.core.errors import UserError
from fedham_flwr.core.imports import section_of
from fedham_flwr.run_settings import Settings
from fedham_flwr.sections import advice, built_in, sections_of
from fedham_flwr.task import expand

Value = bool | int | float | str
"""What a setting can be: the scalars that Flower's configuration carries."""

MOST = 3.4e38
"""No number is larger: what becomes a tensor must not overflow."""


def parse(raw: Mapping[str, Value]) -> Settings:
    """Settings from a flat mapping of keys as they are written (`fedprox.mu`); what is not named has its default.

    Raises:
        UserError: every fault at once: keys that do not exist, each with the nearest one that does, and values of
            the wrong type or out of range, each with what was wanted.
    """
    given = expand(raw)
    if strange := [key for key, value in given.items() if type(value) not in (bool, int, float, str)]:
        wrong = [f"{key}={given[key]!r}: wanted a truth value, a number or a text" for key in strange]
        raise UserError("settings: " + "; ".join(wrong))
    types, named = tuple(type(given[k]) for k in sorted(given)), tuple(registry.METHODS.items())
    return _parse(tuple(sorted(given.items(), key=lambda item: item[0])), types, named)


@lru_cache(maxsize=8)
def _parse(items: tuple[tuple[str, Value], ...], _types: tuple[type, ...], _methods: tuple[object, ...]) -> Settings:
    # The types are part of the cache's key: 1, 1.0 and True are equal, and only one of them is a batch size. So are the
    # methods, to which a program may add.
    raw = dict(items)
    sections, faults = sections_of(raw, [name.replace("_", "-") for name in Settings.model_fields])
    model = _with_sections(tuple(sections.items()))
    known = _known(model)
    faults += [_unknown(key, value, list(known), raw) for key, value in items if key not in known]
    good = {key: value for key, value in items if key in known}
    faults += [
        f"{key}={good.pop(key)!r}: wanted at most 3.4e38 in size, what a 32-bit float can hold"
        for key in [key for key, value in good.items() if not isinstance(value, str) and MOST < abs(value) < math.inf]
    ]
    while True:
        try:
            # Through JSON, since strict validation of Python objects takes no mapping for a method's settings.
            settings = model.model_validate_json(json.dumps(_nest(good)))
        except ValidationError as error:
            faults += [_invalid(fault["loc"], fault["msg"], raw) for fault in error.errors()]
            wrong = {_key(fault["loc"]) for fault in error.errors()} & good.keys()
        else:
            break
        if not wrong:
            break
        # How settings fit together is only looked at when each of them is right: look again without the wrong ones.
        good = {key: value for key, value in good.items() if key not in wrong}
    if faults:
        raise UserError("settings: " + "; ".join(faults))
    return settings


def _nest(flat: Mapping[str, Value]) -> dict[str, object]:
    nested: dict[str, object] = {}
    for key, value in flat.items():
        section, _, name = key.replace("-", "_").rpartition(".")
        place = nested.setdefault(section, {}) if section else nested
        assert isinstance(place, dict)
        place[name] = value
    return nested


def flatten(settings: Settings) -> dict[str, Value]:
    """The settings as a flat mapping, spelled as in pyproject.toml; `parse` is the inverse."""
    flat: dict[str, Value] = {}
    for name in type(settings).model_fields:
        value = getattr(settings, name)
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            section = name.replace("_", "-")
            names = (field.name for field in dataclasses.fields(value))
            flat |= {f"{section}.{each.replace('_', '-')}": getattr(value, each) for each in names}
        else:
            flat[name.replace("_", "-")] = value
    return flat


def defaults() -> Mapping[str, Value]:
    """Every key of the settings, without those of a user's objects, with its default."""
    return _defaults(tuple(registry.METHODS.items()))


@lru_cache(maxsize=2)
def _defaults(_methods: tuple[object, ...]) -> Mapping[str, Value]:
    return flatten(_with_sections(tuple(built_in().items()))())


@lru_cache(maxsize=16)
def _with_sections(sections: tuple[tuple[str, type], ...]) -> type[Settings]:
    """The model of all settings of a run with these sections."""
    fields: dict[str, Any] = {name.replace("-", "_"): (given, given()) for name, given in sections}
    return create_model("Settings", __base__=Settings, **fields)


@lru_cache(maxsize=16)
def _known(model: type[Settings]) -> Mapping[str, Value]:
    """The keys that the settings of a run with this model can have, with their defaults."""
    return flatten(model())


def methods() -> tuple[str, ...]:
    """Names of the methods."""
    return tuple(registry.METHODS)


def _unknown(key: str, value: Value, known: list[str], settings: Mapping[str, Value]) -> str:
    core, others = [k for k in known if "." not in k], [k for k in known if "." in k]
    chosen = {section_of(str(settings.get(which, defaults()[which]))) for which in ("strategy", "model")}
    return f"there is no key {key} (given {value!r}): {advice(key, core, others, chosen)}"


def _key(place: tuple[int | str, ...]) -> str:
    return ".".join(str(part) for part in place).replace("_", "-")


def _invalid(place: tuple[int | str, ...], message: str, raw: Mapping[str, Value]) -> str:
    key, wanted = _key(place), message.removeprefix("Value error, ")
    wanted = wanted.replace("Input should be", "wanted").replace("String should have", "wanted")
    return f"{key}={raw[key]!r}: {wanted}" if key in raw else wanted
