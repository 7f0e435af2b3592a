"""Which run the setting `resume` continues, and with which settings.

A run is continued in its own directory, from its last whole checkpoint, with its own settings; some of them decide
nothing about what is learned, and may be given anew. Of `strategy="fedtransfer"`, `resume` can also name a run, or a
model, that the personal stage starts from: see `warm_start.py`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path

from fedham_flwr import registry
from fedham_flwr.core.callback_settings import EARLY_STOPPING
from fedham_flwr.core.errors import UserError
from fedham_flwr.data.clients import clients_there
from fedham_flwr.resume.changed_data import Began, recall
from fedham_flwr.resume.runs import read_settings, read_summary
from fedham_flwr.resume.writer import check_free
from fedham_flwr.run_settings import Settings
from fedham_flwr.sections import callback_sections
from fedham_flwr.settings import Value, flatten, parse

FREE = (
    "num-server-rounds", "evaluate-every", "min-replies", "min-clients", "client-timeout", "round-timeout", "cache-dir",
    "device", "results-dir", "resume", "checkpoint-every", "bank-memory",
    "lost-state", "changed-data", "callbacks", "tracker", "tracking",
)  # fmt: skip
"""Settings, and a section, that a run may be continued with other values of; so are those of its callbacks."""


def continued(settings: Settings) -> Path | None:
    """The directory of the run that is to be continued; None if this is a run of its own.

    Raises:
        UserError: `resume` names no run of this method, one with other settings, or one that has come to its end.
    """
    if not settings.resume:
        return None
    run = _absolute(settings.resume)
    config = read_settings(run)
    if _is_start(settings.strategy, config, run):
        return None
    if not config:
        raise UserError(
            f"resume={settings.resume} is not the directory of a run: wanted results/<strategy>/<time>-<seed>, which "
            f"has a config.toml (looked for {run / 'config.toml'})"
        )
    now = {key: value for key, value in flatten(settings).items() if _is_read(key, settings.strategy)}
    changed = [key for key in now if key in config and config[key] != now[key]]
    following = {EARLY_STOPPING, *callback_sections(settings.callbacks)}
    if differ := [key for key in changed if not ({key, key.partition(".")[0]} & {*FREE, *following})]:
        was = ", ".join(f"{key}={json.dumps(config[key])} (now {json.dumps(now[key])})" for key in differ)
        raise UserError(f"resume={settings.resume}: a run is continued with the settings that it began with: {was}")
    rounds = _ended(run)
    if rounds is not None and not {"callbacks", *following} & {key.partition(".")[0] for key in changed}:
        _check_not_stopped(run, settings)
    if rounds is not None and rounds >= settings.num_server_rounds:
        raise UserError(
            f"resume={settings.resume} has come to its end, after {rounds} rounds: wanted a run that was interrupted, "
            "or num-server-rounds above that"
        )
    return run


def _check_not_stopped(run: Path, settings: Settings) -> None:
    """Refuse to go on with a run that one of its callbacks has ended, as it would again."""
    stopped = read_summary(run).get("stopped")
    if isinstance(stopped, dict) and stopped.get("by") in settings.callbacks.split():
        raise UserError(
            f"resume={settings.resume} has come to its end: {stopped['by']} stopped it after round {stopped['round']} "
            f'({stopped["why"]}): wanted other callbacks, as callbacks="", or other settings of theirs'
        )


def complete(path: str, given: Mapping[str, Value]) -> dict[str, Value]:
    """The settings of the run that `path` names, overridden by those given; only those given if it is not continued.

    Args:
        path: the setting `resume`.
        given: settings by key, as in pyproject.toml.

    Raises:
        UserError: the run to be continued is going on, or has had its personal stage.
    """
    run = _absolute(path)
    config = read_settings(run)
    strategy = given.get("strategy", config.get("strategy"))
    if _is_start(strategy, config, run):
        if "strategy" not in given:
            raise UserError(
                f"resume={path} has come to its end, and {strategy} has no rounds after its personal stage: wanted "
                f'strategy="{strategy}" too, and the settings of a run of its own, to start that stage from what it '
                "trained, or a run that was interrupted"
            )
        config = {}
    elif config:
        check_free(run)
        left = callback_sections(str(config.get("callbacks", ""))) - callback_sections(
            str(given.get("callbacks", config.get("callbacks", "")))
        )
        kept = (key for key in config if key.rpartition(".")[0] not in left and _is_read(key, str(strategy)))
        config = {key: config[key] for key in kept}
    return {**config, **given, "resume": path}


def num_clients(path: str) -> int | None:
    """How many clients the run had that `path` names; None if that cannot be told."""
    try:
        return len(json.loads((_absolute(path) / "clients.json").read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return None


def clients_of(given: Mapping[str, Value], path: str = "") -> int:
    """How many clients a run has for which nobody said it: those of the run that it continues, or that the data have.

    Args:
        given: its settings by key.
        path: the setting `resume`.

    Raises:
        UserError: the settings are wrong, or the data can't be read.
    """
    data, began = parse(given).data(), recall(_absolute(path)) if path else Began()
    then = began.clients or (num_clients(path) if path else 0)
    if then and began.there != then:
        return then  # not all that there were
    return clients_there(data) or then or 10


def _is_read(key: str, strategy: str) -> bool:
    """Whether a setting is not another method's, whose names and defaults may be others in the version that began."""
    section = key.partition(".")[0]
    return section == strategy or section not in registry.METHODS


def _is_start(strategy: object, config: Mapping[str, Value], run: Path) -> bool:
    """Whether a personal stage starts from that run, which then is another method's or at its end."""
    if not isinstance(strategy, str) or not registry.method(strategy).personal_stage:
        return False
    return config.get("strategy") != strategy or _ended(run) is not None


def _absolute(path: str) -> Path:
    return Path(os.path.abspath(os.path.expanduser(path)))


def _ended(run: Path) -> int | None:
    """How many rounds a run had that came to its end; None for one that did not."""
    summary = read_summary(run)
    rounds = summary.get("num-rounds")
    return rounds if isinstance(rounds, int) and "error" not in summary else None
