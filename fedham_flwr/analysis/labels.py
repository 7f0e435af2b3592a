"""What runs that no study made are called: methods and tasks by the settings in which they differ."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from fedham_flwr import registry
from fedham_flwr.core.imports import is_path, section_of
from fedham_flwr.models import NETWORKS
from fedham_flwr.resume.continuing import FREE
from fedham_flwr.settings import defaults

DATA = (
    "task", "dataset", "feature-column", "label-column", "client-column", "target", "image-size", "partitioner",
    "alpha", "classes-per-client", "owner-share", "class-table", "groups", "shift", "samples-per-client",
    "sequence-length", "vocabulary", "min-characters", "validation-fraction", "test-fraction", "data-seed",
    "novel-clients", "clients",
)  # fmt: skip
"""What decides the data and who has which, with the number of clients."""
SECTIONS = ("image", "table", "series", "text")
"""Of the data."""
APART = (
    {*FREE} - {"num-server-rounds"}
    | {"seed", "metrics", "selection-metric", "score-test", "model-cards", "tracker", "tracking"}
    | {"cross-evaluation", "cross-evaluation-clients"}
)
"""Settings, and sections, that decide neither what is learned nor from what."""
Settings = Mapping[str, Any]


def of_data(settings: Settings) -> dict[str, Any]:
    """The settings that decide the data, with the defaults of those that an older run did not have.

    Args:
        settings: of a run, with `clients`.
    """
    own = {
        section_of(str(settings.get(key, "")))
        for key in ("dataset", "partitioner")
        if is_path(str(settings.get(key, "")))
    }
    return {
        key: value
        for key, value in {**defaults(), **settings}.items()
        if key in DATA or ("." in key and key.partition(".")[0] in {*SECTIONS, *own})
    }


def of_method(settings: Settings, network: str = "") -> dict[str, Any]:
    """The settings that decide what is learned from the data, without those of other methods and networks.

    Args:
        settings: of a run, with `clients`.
        network: its name, where the setting `model` leaves it open; of several, with commas between.
    """
    networks = (network or str(settings.get("model", ""))).split(", ")
    own = {section_of(str(settings.get("strategy", ""))), *map(section_of, networks)}
    apart = {*APART, *registry.METHODS, *NETWORKS} - own
    data = of_data(settings)
    return {
        key: value
        for key, value in {**defaults(), **settings}.items()
        if key not in data and (key.partition(".")[0] if "." in key else key) not in apart
    }


def labelled(names: Sequence[str], groups: Sequence[Settings]) -> list[str]:
    """A label for each group: its name, and the settings in which groups of that name differ.

    Args:
        names: of the groups.
        groups: the settings of each.
    """
    alike: dict[str, list[Settings]] = defaultdict(list)
    for name, settings in zip(names, groups, strict=True):
        alike[name].append(settings)
    keys = {name: differing(found) for name, found in alike.items()}
    return [
        ", ".join([name, *(setting_text(key, settings[key]) for key in keys[name] if key in settings)])
        for name, settings in zip(names, groups, strict=True)
    ]


def differing(groups: Iterable[Settings]) -> list[str]:
    """The keys whose values are not the same in all groups, in the order of their appearance.

    Args:
        groups: settings.
    """
    found = [*groups]
    keys = dict.fromkeys(key for settings in found for key in settings)
    return [key for key in keys if len({repr(settings.get(key)) for settings in found}) > 1]


def setting_text(key: str, value: object) -> str:
    """A setting as part of a label: `alpha=0.1`, `20 clients`.

    Args:
        key: of the setting.
        value: its value.
    """
    if key == "clients":
        return f"{value} clients"
    return f"{key}={value_text(value)}"


def value_text(value: object) -> str:
    """A setting's value as it is written on a command line, numbers short.

    Args:
        value: of a setting.
    """
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)


def data_name(settings: Settings) -> str:
    """The data set as a word: a built-in name, a file's without its folder, or an object's.

    Args:
        settings: of a run.
    """
    name = str(settings.get("dataset", "data"))
    if is_path(name):
        return section_of(name)
    return Path(name).name or name
