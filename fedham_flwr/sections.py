"""Sections of settings that their owners bring: methods, networks, and objects named by an import path."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping, Sequence

from fedham_flwr import registry
from fedham_flwr.core.errors import UserError
from fedham_flwr.core.imports import is_path, load_object, section_of, settings_class
from fedham_flwr.core.methods import Method
from fedham_flwr.core.search_space import Value
from fedham_flwr.models import NETWORKS, client_models
from fedham_flwr.training.optim import GIVEN

CALLED_WITH = {
    "optimizer": GIVEN,
    "dataset": ("client", "clients", "seed", "data_path"),
    "partitioner": (
        "labels",
        "clients",
        "seed",
        "num_partitions",
        "partition_by",
        "alpha",
        "num_classes_per_partition",
    ),
}
"""What objects are called with beside their own settings, where these names may have defaults."""
OBJECTS = (
    "strategy",
    "model",
    "dataset",
    "partitioner",
    "loss",
    "optimizer",
    "metrics",
    "augmentation",
    "callbacks",
    "client-models",
)
"""Settings that may name an object by its import path, whose own settings become a section."""
SEVERAL = ("metrics", "callbacks")
"""Of these, those that may name several, with blanks between; `client-models` has commas."""

MEANT = {
    "rounds": "num-server-rounds", "num-rounds": "num-server-rounds", "n-rounds": "num-server-rounds",
    "global-rounds": "num-server-rounds", "epochs": "local-epochs", "num-epochs": "local-epochs", "lr": "learning-rate",
    "lr-decay": "schedule", "lr-schedule": "schedule", "lr-scheduler": "schedule", "scheduler": "schedule",
    "learning-rate-decay": "schedule", "wd": "weight-decay", "batch": "batch-size", "bs": "batch-size",
    "gpu": "device", "method": "strategy", "algorithm": "strategy", "data": "dataset", "network": "model",
    "output-dir": "results-dir", "save-dir": "results-dir", "test-size": "test-fraction", "trackers": "tracker",
    "logger": "tracker", "patience": "early-stopping.patience", "server-lr": "server.learning-rate",
    "server-learning-rate": "server.learning-rate", "server-optimizer": "server.optimizer",
    "server-momentum": "server.momentum", "aggregator": "server.aggregation",
}  # fmt: skip
"""What others call a setting -> the setting."""
CLIENTS = ("num-clients", "clients", "n-clients", "num-supernodes", "num-partitions")
"""What others call the number of clients, which is no setting."""


def built_in() -> dict[str, type]:
    """The sections of the methods that have a name and of the built-in networks, and the dataclass of each."""
    methods = {name: registry.method(name).settings for name in registry.METHODS}
    return {name: given for name, given in {**methods, **NETWORKS}.items() if given is not None}


def sections_of(raw: Mapping[str, object], core: Collection[str]) -> tuple[dict[str, type], list[str]]:
    """The built-in sections and those of objects that the settings name by import path; and what is wrong.

    Args:
        raw: settings by key.
        core: the settings that every run has, which no section can be named like.
    """
    sections, faults = built_in(), []
    owners: dict[str, str] = {}
    for setting in OBJECTS:
        value = str(raw.get(setting, ""))
        names = client_models.names_of(value) if setting == "client-models" else value.split()
        for name in names if setting in (*SEVERAL, "client-models") else [value]:
            if not (is_path(name) or (setting == "strategy" and registry.is_entry_point(name))):
                continue
            try:
                given = _settings_of(setting, name)
                if given is not None:
                    _check_free(setting, name, owners.setdefault(section_of(name), name), core)
            except UserError as error:
                faults.append(str(error))
                continue
            if given is not None:
                sections[section_of(name)] = given
    return sections, faults


def without_callbacks(given: Mapping[str, Value]) -> dict[str, Value]:
    """The settings for clients, which need not find what only the server calls.

    Args:
        given: settings by key.
    """
    sections = callback_sections(str(given.get("callbacks", "")))
    return {k: v for k, v in given.items() if k != "callbacks" and k.rpartition(".")[0] not in sections}


def callback_sections(names: str) -> set[str]:
    """The sections of a user's own callbacks.

    Args:
        names: the setting `callbacks`.
    """
    return {section_of(name) for name in names.split() if is_path(name)}


def _settings_of(setting: str, name: str) -> type | None:
    found = registry.method(name) if setting == "strategy" else load_object(setting, name)
    if isinstance(found, Method):
        return found.settings
    return settings_class(found, CALLED_WITH.get(setting, ()))


def _check_free(setting: str, name: str, owner: str, core: Collection[str]) -> None:
    """Refuse a section that is another's, or a setting."""
    section, what = section_of(name), f'{setting}="{name}" has settings of its own, whose section would be'
    if section in core:
        raise UserError(f"{what} {section}, which is a setting: wanted another name for the object")
    if owner != name:
        raise UserError(f"{what} {section}, as that of {owner}: wanted another name for one of them")
    built = {"strategy": registry.METHODS, "model": NETWORKS, "client-models": NETWORKS}.get(setting, {})
    if section in built_in() and section not in built:
        raise UserError(f"{what} {section}, which is built in: wanted another name for the object")


def advice(key: str, core: Sequence[str], others: Sequence[str], chosen: Collection[str]) -> str:
    """What to do about a key that does not exist.

    Args:
        key: as it was given.
        core: keys of the settings that every run has.
        others: keys within sections.
        chosen: the sections of the run's own method and network.
    """
    spelled = key.replace("_", "-").lower()
    if spelled in CLIENTS:
        return "the number of clients is --num-supernodes on the command line and clients in simulate()"
    near = [k for k in others if k.startswith(f"{spelled}.")]
    near += [MEANT[spelled]] if spelled in MEANT else []
    near += [k for k in others if k.partition(".")[0] in chosen and k.partition(".")[2] == spelled]
    near += difflib.get_close_matches(spelled, [*core, *others] if "." in key else core, n=1, cutoff=0.6)
    of_others = [k for k in others if k.partition(".")[2] == spelled]
    near += of_others if len(of_others) == 1 else []
    if near:
        return f"did you mean {near[0]}?"
    return f"the keys are {', '.join([*core, *others])}"
