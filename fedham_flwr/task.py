"""What a user brings to a run, several things at once: a model, data, and perhaps a loss, metrics and an optimiser."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from types import ModuleType, SimpleNamespace
from typing import Any

from fedham_flwr.core.errors import UserError
from fedham_flwr.core.imports import load_module, load_object

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


GIVEN = SimpleNamespace()
"""Objects of this process that have no import path of their own, such as those of a notebook, by name."""


def given_path(obj: Any, name: str = "") -> str:
    """An import path of an object: its own, or one by which this process, and no other, finds it.

    Args:
        obj: a class, a function or any other object.
        name: what to call it; by default its own name.
    """
    module, qualified = getattr(obj, "__module__", ""), getattr(obj, "__qualname__", "")
    found: Any = sys.modules.get(module) if module != "__main__" else None
    for part in qualified.split("."):
        found = getattr(found, part, None)
    if found is obj:
        return f"{module}:{qualified}"
    name = name or getattr(obj, "__name__", type(obj).__name__)
    name = name if name.isidentifier() else "given"
    setattr(GIVEN, name, obj)
    return f"{__name__}:GIVEN.{name}"


def is_of_this_process(path: str) -> bool:
    """Whether other processes do not find the object."""
    return path.startswith(f"{__name__}:GIVEN.")


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
