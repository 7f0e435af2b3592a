"""Whether the folder of a study is that of the study which is asked for."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from fedham_flwr.core.errors import UserError
from fedham_flwr.study.planned import Plan

OURS = ("study.toml", "plan.json", "tuning.json", "runs", "tables", "report.html", "study.log", ".writer")
"""What the folder of a study has in it, also one whose plan.json is lost: what is done is known by its keys."""


def check_same(folder: Path, before: Mapping[str, Any], plan: Plan) -> None:
    """Refuse a folder that is not this study's.

    A study may get other methods, tasks, seeds and tuning. What its name and its labels stand for stays.

    Args:
        folder: the place.
        before: its `plan.json`; empty without one. One that is damaged counts as none.
        plan: what is asked for.

    Raises:
        UserError: it is another study's, or no study's, or no folder.
    """
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file: wanted a folder for --output")
    if not _whole(before):
        there = sorted(each.name for each in folder.iterdir()) if folder.is_dir() else []
        if strange := [name for name in there if name not in OURS and not name.endswith(".tmp")]:
            raise UserError(
                f"{folder} is not the folder of a study, and has {strange[0]} in it: wanted an empty folder, or a new "
                "one, for --output"
            )
    elif differ := list(differences(before, plan.told())):
        raise UserError(
            f"{folder} is the folder of a study with {', '.join(differ)}: methods, tasks, seeds and tuning can be "
            "added to a study, and for anything else wanted another name = ... or another --output"
        )


def _whole(before: Mapping[str, Any]) -> bool:
    """Whether a plan that was read has all that is compared."""
    labelled = [each for kind in ("methods", "tasks") for each in _entries(before, kind)]
    tables = [before.get("settings"), *(each.get("settings") for each in labelled)]
    return bool(labelled) and all(isinstance(each, dict) for each in tables) and all("label" in x for x in labelled)


def _entries(before: Mapping[str, Any], kind: str) -> list[Mapping[str, Any]]:
    found = before.get(kind)
    return [each if isinstance(each, dict) else {} for each in found] if isinstance(found, list) else []


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    """What the name or a label of a study stood for, where it now stands for something else.

    Args:
        before: a `plan.json`.
        now: what is asked for.
    """
    yield from _changed("", {"name": before.get("name")}, {"name": now["name"]})
    yield from _changed("[settings] ", before["settings"], now["settings"])
    for kind, beside in (("methods", "strategy"), ("tasks", "clients")):
        then = {each["label"]: each for each in before[kind]}
        for each in now[kind]:
            one, other = (
                {beside: which[beside], **which["settings"]} for which in (then.get(each["label"], each), each)
            )
            yield from _changed(f"[{kind[:-1]}.{each['label']}] ", one, other)


def _changed(place: str, then: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    for key in dict.fromkeys([*then, *now]):
        if then.get(key) != now.get(key):
            one, other = (json.dumps(which[key]) if key in which else "not set" for which in (then, now))
            yield f"{place}{key} {'= ' * (key in then)}{one} (now {other})"
