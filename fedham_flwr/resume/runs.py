"""What the directory of an earlier run says of it: its settings and its summary."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from pathlib import Path

Value = bool | int | float | str


def read_settings(run: Path) -> dict[str, Value]:
    """A run's settings by key, as in pyproject.toml; empty if there are none to be read."""
    try:
        return flat(tomllib.loads((run / "config.toml").read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return {}


def read_summary(run: Path) -> dict[str, object]:
    """A run's summary.json; empty if there is none that can be read."""
    try:
        summary = json.loads((run / "summary.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return summary if isinstance(summary, dict) else {}


def flat(table: Mapping[str, object], prefix: str = "") -> dict[str, Value]:
    """A TOML table's scalars by dotted key."""
    found: dict[str, Value] = {}
    for key, value in table.items():
        if isinstance(value, Mapping):
            found |= flat(value, f"{prefix}{key}.")
        elif isinstance(value, bool | int | float | str):
            found[prefix + key] = value
    return found
