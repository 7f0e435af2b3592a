"""What a run that begins with a trained model has otherwise than the run that trained it, which is worth a warning."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedham_flwr.data.data_settings import resolved
from fedham_flwr.resume.runs import read_settings

DEALING = (
    "dataset", "feature-column", "label-column", "client-column", "partitioner", "alpha", "classes-per-client",
    "owner-share", "class-table", "groups", "shift", "samples-per-client", "sequence-length",
    "vocabulary", "min-characters", "validation-fraction", "test-fraction",
)  # fmt: skip
"""Settings that decide which samples a client trains on, and which it tests on."""


def dealt_otherwise(path: str, now: Mapping[str, object]) -> tuple[str, ...]:
    """How the data were dealt in the run that left a start, where it is not as in this run.

    Clients then test on samples that the start may have been trained on.

    Args:
        path: as for `read_start`, which has read it.
        now: this run's settings, spelled as in pyproject.toml.

    Returns:
        "seed=0" for each setting that differs; nothing where the earlier run's settings cannot be read.
    """
    if not (then := _then(path)):
        return ()
    then, now = _with_partitioner(then), _with_partitioner(now)
    differ = [key for key in DEALING if key in then and then[key] != now[key]]
    seed, seed_now = _seed_setting(then), _seed_setting(now)
    differ += [seed] if seed in then and then[seed] != now[seed_now] else []
    return tuple(f"{key}={json.dumps(then[key])}" for key in differ)


def headed_otherwise(path: str, now: Mapping[str, object]) -> tuple[str, ...]:
    """By what the first head was another one in the run that left a start, whose layers were trained under it.

    Args:
        path: as for `dealt_otherwise`.
        now: as for `dealt_otherwise`.

    Returns:
        As `dealt_otherwise`.
    """
    then = _then(path)
    return tuple(
        f"{key}={json.dumps(then[key])}" for key in ("strategy", "seed") if then.get(key, now[key]) != now[key]
    )


def _then(path: str) -> Mapping[str, Any]:
    """The settings of the run that left a start; none where they cannot be read."""
    place = Path(os.path.abspath(os.path.expanduser(path)))
    return next(filter(None, map(read_settings, (place, place.parent, place.parent.parent))), {})


def _seed_setting(settings: Mapping[str, Any]) -> str:
    """The setting that is the seed of partition and splits."""
    return "data-seed" if settings.get("data-seed", -1) >= 0 else "seed"


def _with_partitioner(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings with the partitioner that `auto` stands for, which runs before there was one had written."""
    keys = ("partitioner", "client-column", "class-table")
    given = [str(settings.get(key, "")) for key in keys]
    return {**settings, "partitioner": resolved(*given)} if all(key in settings for key in keys) else {**settings}
