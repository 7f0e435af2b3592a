"""Which methods a study has, by their labels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fedham_flwr import registry
from fedham_flwr.core.files import SAFE_NAME
from fedham_flwr.core.imports import is_path
from fedham_flwr.study.document import Document, nearest
from fedham_flwr.study.planned import StudyMethod, floors


def named(document: Document, faults: list[str]) -> list[StudyMethod]:
    """The methods of a study, the floors first.

    Args:
        document: the study's file.
        faults: what is wrong; names that are no methods, and tables of methods that there are not, are added.
    """
    first = [floor for floor in floors() if document.floors or floor in document.methods]
    labels = list(dict.fromkeys([*first, *document.methods]))
    found = []
    for label in filter(SAFE_NAME.fullmatch, labels):  # what is wrong with another has been said
        own = dict(document.method.get(label, {}))
        strategy = own.pop("strategy", label)
        if fault := _method_fault(label, strategy, "strategy" in document.method.get(label, {})):
            faults.append(fault)
        else:
            found.append(StudyMethod(label, str(strategy), own))
    if document.methods:
        if document.reference not in ("", *labels):
            near = nearest(document.reference, labels)
            faults.append(f"reference = {document.reference!r} is no method of the study{near}: "
                          f"wanted one of {', '.join(labels)}")  # fmt: skip
        faults += _strays(document.method, "method", labels)
        faults += _strays(document.tune.methods if document.tune else {}, "tune.methods", labels)
    return found


def _method_fault(label: str, strategy: object, told: bool) -> str:
    """What is wrong with a method's strategy; empty if nothing is."""
    table = f"[method.{label}] strategy = "
    if not isinstance(strategy, str):
        return f"{table}{strategy!r}: wanted the name of a method"
    if label in registry.METHODS and strategy != label:
        return f'{table}"{strategy}": {label} is a method itself; wanted another label'
    if strategy in registry.METHODS or is_path(strategy) or registry.is_entry_point(strategy):
        return ""
    near = nearest(strategy, registry.METHODS)
    if told:
        return f'{table}"{strategy}" is no method{near}: wanted one of {", ".join(registry.METHODS)}'
    return f"methods names {label!r}, which is no method{near}, and no [method.{label}] says its strategy"


def _strays(tables: Mapping[str, Any], place: str, labels: list[str]) -> list[str]:
    """Tables of methods that the study does not have."""
    what = "is of no method of the study"
    return [f"[{place}.{label}] {what}{nearest(label, labels)}" for label in tables if label not in labels]
