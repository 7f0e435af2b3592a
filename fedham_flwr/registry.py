"""Which object a name stands for: the methods, by their names, an entry point or the import path of a user's own."""

from __future__ import annotations

import importlib.metadata
import re
from functools import lru_cache
from typing import Any

from fedham_flwr.core.errors import UserError
from fedham_flwr.core.imports import is_path, load_object
from fedham_flwr.core.methods import Method
from fedham_flwr.core.packages import import_ours, is_ours

BUILT_IN = (
    "local", "fedavg", "fedprox", "fedper", "pfedla", "amn", "fedham", "fedtp", "fedtransfer", "fedrep",
    "ditto", "fedala", "fedrod", "feddbe", "gpfl", "fedcp", "lgfedavg", "fedbn", "fedbabu", "knnper",
    "perfedavg", "pfedme", "apfl", "fedamp", "pfedgraph", "fedfomo", "fedcac", "pfedhn", "fedaghn", "fedselect",
    "fedpac", "fedas", "pfedfda", "fedproto", "fedgh", "lora", "clustered",
)  # fmt: skip
METHODS: dict[str, str | Method] = {name: f"fedham_flwr.algorithms.{name}:METHOD" for name in BUILT_IN}
"""Name -> its declaration, or the import path of it."""
GROUP = "fedham_flwr.methods"
"""The entry points by which installed packages give their methods names."""


@lru_cache(maxsize=1)
def _entry_points() -> dict[str, str]:
    """Name -> import path, of the packages that are installed."""
    return {found.name: found.value for found in importlib.metadata.entry_points(group=GROUP)}


def composing() -> list[str]:
    """Names of the methods that can leave layers to the clients, whatever they do with the rest."""
    return [name for name in METHODS if method(name).composes]


def with_own_networks() -> list[str]:
    """Names of the methods whose clients may have networks that differ."""
    return [name for name in METHODS if method(name).own_networks]


def is_entry_point(name: str) -> bool:
    """Whether an installed package has a method of this name; a built-in one comes first."""
    return name not in METHODS and bool(_NAME.fullmatch(name)) and name in _entry_points()


_NAME = re.compile(r"[a-z][a-z0-9-]*")


def method(name: str) -> Method:
    """The method that the setting `strategy` names.

    Raises:
        UserError: there is no such method, or the object is no `Method`.
    """
    found = _entry_points()[name] if is_entry_point(name) else METHODS.get(name, name)
    if isinstance(found, str):
        if not is_path(found):
            raise UserError(
                f'strategy="{name}" is no method: wanted {", ".join(METHODS)}, or "package.module:Object", a Method'
            )
        found = load_object("strategy", found)
    if not isinstance(found, Method):
        what = f"the class {found.__name__}" if isinstance(found, type) else type(found).__name__
        raise UserError(
            f'strategy="{name}" is {what}, and wanted is a fedham_flwr.Method: Method(server half, client half, split)'
        )
    return found


@lru_cache(maxsize=64)
def half(given: str | type) -> Any:
    """The class of a method's half, which may be given by its import path.

    Raises:
        UserError: it cannot be imported.
    """
    if not isinstance(given, str):
        return given
    module, _, name = given.partition(":")
    if is_ours(module) and (ours := getattr(import_ours(module), name, None)) is not None:
        return ours
    return load_object("strategy", given)


def aggregates(name: str) -> bool:
    """Whether the settings under `server.` say what a method's server half makes of the clients' tensors.

    Raises:
        UserError: there is no such method.
    """
    return bool(getattr(half(method(name).strategy), "aggregates", False))


def learns_from_novel(name: str) -> bool:
    """Whether a method's server half learns from novel clients, in turns, as `contract.AdaptsNovel`.

    Raises:
        UserError: there is no such method.
    """
    return callable(getattr(half(method(name).strategy), "adapt", None))


def register(name: str, declared: Method) -> None:
    """Make a method known by a name in this process.

    Args:
        name: for the setting `strategy`, and the section of the method's settings.
        declared: the method.

    Raises:
        UserError: the name is a built-in method's, or cannot be one; or this is no method.
    """
    if name in BUILT_IN:
        raise UserError(f"{name} is a built-in method: wanted another name")
    if not _NAME.fullmatch(name):
        raise UserError(f"{name!r} is no name for a method: wanted small letters, digits and hyphens")
    if not isinstance(declared, Method):
        raise UserError(f"{name} is {type(declared).__name__}, and wanted is a fedham_flwr.Method")
    METHODS[name] = declared
