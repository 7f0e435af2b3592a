"""The text of what a run writes, in TOML and JSON."""

import json
import math
from collections.abc import Mapping


def toml_text(settings: Mapping[str, bool | int | float | str]) -> str:
    """All settings as a file that can be given back."""
    lines = [f"{name} = {_toml_value(value)}\n" for name, value in settings.items()]
    return "".join(["# Every setting of this run; give it back with -c config.toml\n", *lines])


def _toml_value(value: bool | int | float | str) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        # JSON's escapes are TOML's too, but for pairs of surrogates and DEL, which TOML wants escaped.
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return repr(value)


def json_text(value: object, indent: int | None = None) -> str:
    """A value as JSON, with null for NaN and infinity."""
    return json.dumps(_finite(value), indent=indent, ensure_ascii=False, allow_nan=False)


def _finite(value: object) -> object:
    """A copy with null for NaN and infinity, which JSON does not have."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value
