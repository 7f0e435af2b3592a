"""Which object a name stands for: the methods, by their names or by the import path of a user's own."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from fedham_flwr.core.errors import UserError
from fedham_flwr.core.imports import is_path, load_object
from fedham_flwr.core.methods import Method

BUILT_IN = (
    "local", "fedavg", "fedprox", "fedper", "pfedla", "amn", "fedham", "fedtp", "fedtransfer", "fedrep", "ditto",
    "fedala",
)  # fmt: skip
METHODS: dict[str, str | Method] = {name: f"fedham_flwr.algorithms.{name}:METHOD" for name in BUILT_IN}
"""Name -> its declaration, or the import path of it."""


def method(name: str) -> Method:
    """The method that the setting `strategy` names.

    Raises:
        UserError: there is no such method, or the object is no `Method`.
    """
    found = METHODS.get(name, name)
    if isinstance(found, str):
        if not is_path(found):
            raise UserError(
                f'strategy="{name}" is no method: wanted {", ".join(METHODS)}, or "package.module:Object", a Method'
            )
        found = load_object("strategy", found)
    if not isinstance(found, Method):
        raise UserError(f'strategy="{name}" is {type(found).__name__}, and wanted is a fedham_flwr.Method')
    return found


@lru_cache(maxsize=64)
def half(given: str | type) -> Any:
    """The class of a method's half, which may be given by its import path."""
    return load_object("strategy", given) if isinstance(given, str) else given
