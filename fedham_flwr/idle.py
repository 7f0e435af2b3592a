"""Which settings that somebody gave have no effect on a run, since something else than they are for was chosen."""

from __future__ import annotations

import json
import logging
from collections.abc import Collection, Iterator, Mapping
from typing import NamedTuple

from fedham_flwr import registry
from fedham_flwr.core.errors import UserError
from fedham_flwr.core.imports import section_of
from fedham_flwr.models import NETWORKS
from fedham_flwr.models.torchvision_models import TORCHVISION
from fedham_flwr.reasons import OF_CALLBACKS, REASONS, Facts
from fedham_flwr.run_settings import Settings
from fedham_flwr.settings import Value, defaults, flatten

log = logging.getLogger("fedham_flwr")


def of_no_method(keys: Collection[str]) -> set[str]:
    """Those of some keys that no method reads or leaves, so that they are asked for wherever they are written."""
    return OF_CALLBACKS.keys() & keys


class Asked(NamedTuple):
    """Which settings somebody gave.

    Attributes:
        keys: theirs.
        here: they were given for this run alone, in its command or its call, and not in a file, which may hold what
            several methods need; but for those `of_no_method`.
    """

    keys: Collection[str] = ()
    here: bool = False


NOTHING = Asked()


def changed(raw: Mapping[str, Value]) -> set[str]:
    """The keys of a configuration that holds all settings, as Flower's does, whose values are not the defaults."""
    usual = defaults()
    return {key for key, value in raw.items() if usual.get(key) != value}


def check_idle(asked: Asked, facts: Facts) -> None:
    """Say in one line which settings have no effect, and why; those of another method or network are refused.

    Args:
        asked: what somebody gave for this run; what is off, as `momentum=0.0`, is not asked for.
        facts: of the run.

    Raises:
        UserError: a setting that was given for this run is of another method or network.
    """
    others = dict(_of_others(asked.keys, facts.settings, facts.network))
    if asked.here and others:
        raise UserError(_refusal(others, facts.settings))
    values = flatten(facts.settings)
    found = dict(_idle(asked.keys, facts)) | others
    if idle := {key: found[key] for key in values if values[key] and key in found}:
        log.warning("settings that have no effect: %s", _listed(idle, values))


def unread(given: Collection[str], settings: Settings) -> dict[str, str]:
    """Which of some settings have no effect, as far as it can be told without the data, each with the reason.

    Args:
        given: keys; those of other methods and networks are passed over, and so is what is off.
        settings: the run's.
    """
    values = flatten(settings)
    return {key: why for key, why in _idle(given, Facts(settings)) if values[key]}


def check_sections(given: Collection[str], settings: Settings) -> None:
    """Refuse settings of another method or network as far as it can be told without the data.

    Args:
        given: keys that somebody gave for this run alone.
        settings: the run's.

    Raises:
        UserError: there are such.
    """
    network = "" if settings.model == "auto" or settings.client_models else settings.model
    if others := dict(_of_others(given, settings, network)):
        raise UserError(_refusal(others, settings))


def _refusal(others: Mapping[str, str], settings: Settings) -> str:
    return (
        f"settings of another method or network than the run's: {_listed(others, flatten(settings))}; wanted without "
        "them (a file may hold what several methods need)"
    )


def _listed(reasons: Mapping[str, str], values: Mapping[str, Value]) -> str:
    return ", ".join(f"{key}={json.dumps(values[key])} ({why})" for key, why in reasons.items())


def _of_others(given: Collection[str], settings: Settings, network: str) -> Iterator[tuple[str, str]]:
    """The keys of sections of other methods and networks, each with the reason; without a network, of methods alone."""
    chosen = section_of(settings.strategy)
    built = {
        TORCHVISION.rstrip(":") if name.startswith(TORCHVISION) else section_of(name) for name in network.split(", ")
    }
    for key in filter(set(given).__contains__, flatten(settings)):
        section = key.rpartition(".")[0]
        if section in registry.METHODS and section != chosen:
            yield key, f"strategy is {chosen}"
        elif section == "server" and not registry.aggregates(settings.strategy):
            yield key, f"strategy is {chosen}, which takes no mean of models"
        elif network and section in NETWORKS and section not in built:
            yield key, f"the network is {network}"


def _idle(given: Collection[str], facts: Facts) -> Iterator[tuple[str, str]]:
    """Keys of other settings that are not read, each with the reason."""
    for key in filter(REASONS.__contains__, given):
        if why := REASONS[key](facts):
            yield key, why
