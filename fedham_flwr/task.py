"""What a user brings to a run, several things at once: a model, data, and perhaps a loss, metrics and an optimiser."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from types import ModuleType, SimpleNamespace
from typing import Any

from fedham_flwr.core.errors import UserError
from fedham_flwr.core.imports import is_path, load_module, load_object
from fedham_flwr.core.packages import check_theirs

SETTINGS: Mapping[str, str] = {
    "build_model": "model",
    "load_data": "dataset",
    "loss": "loss",
    "metrics": "metrics",
    "optimizer": "optimizer",
}
"""A part of a task -> the setting that it stands for."""


@dataclass(frozen=True)
class Task:
    """A task; what is None is up to the settings.

    Attributes:
        build_model: called with those of `shape`, `outputs` and its settings that it names; returns an `nn.Module`.
        load_data: called with those of `client`, `clients`, `seed`, `data_path` and its settings; see `data.own`.
        loss: a function of (outputs, targets), the mean loss.
        metrics: a `torchmetrics.Metric` class or a function of (outputs, targets); or names of metrics.
        optimizer: called with the parameters, and those of `lr`, `weight_decay`, `momentum` and `betas` that it names.
    """

    build_model: Callable[..., Any] | None = None
    load_data: Callable[..., Any] | None = None
    loss: Any = None
    metrics: Any = None
    optimizer: Any = None


class _Given:
    """Objects of this process that have no import path of their own, such as those of a notebook."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        raise UserError(
            "an object was defined in a script or notebook, in another process: wanted one of a module, or that it is "
            "given again"
        )


GIVEN = _Given()
"""By `n1`, `n2`, ..., each with one object by its name."""


def given_path(obj: Any, name: str = "") -> str:
    """An import path of an object: its own, or one by which this process, and no other, finds it.

    Two objects never have the same, since what a path has led to is remembered: a function that is defined anew in a
    notebook has another one.

    Args:
        obj: a class, a function or any other object.
        name: what to call it; by default its own name.
    """
    module, qualified = getattr(obj, "__module__", ""), getattr(obj, "__qualname__", "")
    found: Any = sys.modules.get(module) if module != "__main__" else None
    for part in str(qualified).split("."):
        found = getattr(found, part, None)
    path = f"{module}:{qualified}"
    if found is obj and found is not None and is_path(path):
        return path
    name = name or str(getattr(obj, "__name__", type(obj).__name__))
    name = name if name.isidentifier() else "given"
    # Counted by name: the first `build` of a program is the same in its next process, which may resume the run.
    number = 1
    while (place := vars(GIVEN).setdefault(f"n{number}", SimpleNamespace())) and hasattr(place, name):
        if getattr(place, name) is obj:
            break
        number += 1
    setattr(place, name, obj)
    return f"{__name__}:GIVEN.n{number}.{name}"


def is_of_this_process(path: str) -> bool:
    """Whether other processes do not find the object."""
    return path.startswith(f"{__name__}:GIVEN.")


def named(text: str) -> str:
    """A text in which objects of this process are called by their names alone, as their owner knows them."""
    return re.sub(rf"{re.escape(__name__)}:GIVEN\.n\d+\.", "", text)


def expand(raw: Mapping[str, Any]) -> dict[str, Any]:
    """Settings in which what the setting `task` brings stands where it belongs.

    Args:
        raw: settings by key; `task` is a module's name, or `module:OBJECT`, a `Task`.

    Raises:
        UserError: there is no such task, it brings nothing, or a setting says otherwise.
    """
    name = str(raw.get("task", ""))
    if not name:
        return dict(raw)
    found = load_object("task", name) if ":" in name else load_module("task", name, name)
    if not isinstance(found, Task | ModuleType):
        raise UserError(f'task="{name}" is {type(found).__name__}, and wanted is a module or a fedham_flwr.Task')
    place = f"{name}." if ":" in name else f"{name}:"
    brought = {part.name: getattr(found, part.name, None) for part in fields(Task)}
    if all(value is None for value in brought.values()):
        check_theirs("task", name)
        raise UserError(f'task="{name}" brings nothing: wanted one of {", ".join(SETTINGS)}')
    expanded = dict(raw)
    for part, value in brought.items():
        if value is None:
            continue
        setting, path = SETTINGS[part], value if isinstance(value, str) else f"{place}{part}"
        if expanded.get(setting, "auto") not in (*DEFAULTS[setting], path):
            raise UserError(
                f'task="{name}" brings {part}, and {setting}="{expanded[setting]}" says otherwise: wanted one of them'
            )
        expanded[setting] = path
    return expanded


DEFAULTS: Mapping[str, tuple[str, ...]] = {
    "model": ("auto",),
    "dataset": ("digits", "auto"),
    "loss": ("auto",),
    "metrics": ("auto",),
    "optimizer": ("sgd", "auto"),
}
"""Values of settings that a task may replace."""
