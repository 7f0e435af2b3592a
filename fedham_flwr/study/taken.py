"""Searches that were carried out before: what an earlier run of the same study has tuned, in another folder."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from fedham_flwr.core.errors import UserError, cause
from fedham_flwr.study.planned import Plan
from fedham_flwr.study.same import differences
from fedham_flwr.study.store import PLAN, TUNING
from fedham_flwr.study.tuning import Tuning

WANTED = "wanted the folder of an earlier run of this study, with plan.json and tuning.json"


def with_tuning(plan: Plan, folder: Path) -> Plan:
    """A plan that takes over the searches that came to their end in another folder; those that did not are done.

    Args:
        plan: the study's.
        folder: that of the other study, or what `docs/make.py keep` took of it.

    Raises:
        UserError: the folder is not that of this study, or what it tried is not what this study would try.
    """
    if plan.tune is None:
        raise UserError(f"--tuning {folder}: the study {plan.name} has no table [tune], and tunes nothing")
    before, entries = _read(folder / PLAN), _read(folder / TUNING)
    try:
        differ = list(differences(before, plan.told()))
        tuned, now = dict(before["tune"]), plan.told()["tune"]
        differ += [f"[tune] {key} = {tuned.get(key)!r} (now {now[key]!r})" for key in now if tuned.get(key) != now[key]]
        over = {(each["method"], each["task"]): each for each in entries if each["chosen"] is not None}
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"--tuning {folder} is damaged ({type(error).__name__}: {error}): {WANTED}") from error
    if differ:
        raise UserError(f"--tuning {folder} is of a study with {', '.join(differ)}: {WANTED}")
    wanted = {pair: over[pair] for pair in plan.spaces if pair in over}
    for pair, entry in wanted.items():
        Tuning(plan, plan.tune, *pair).take_over(entry, f"--tuning {folder}")
    return dataclasses.replace(plan, taken=wanted, tuned_at=str(before.get("commit") or ""))


def _read(file: Path) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        why = cause(error) if isinstance(error, OSError) else "it is no JSON"
        raise UserError(f"--tuning: {file} cannot be read ({why}): {WANTED}") from error
