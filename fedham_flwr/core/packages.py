"""The packages `strategies` and `clients` of this installation, also where a user has a folder of the same name."""

from __future__ import annotations

import importlib
import importlib.util
import re
import sys
import threading
from pathlib import Path
from types import ModuleType

from fedham_flwr.core.errors import UserError

OURS = ("strategies", "clients")
TOP = Path(__file__).resolve().parents[2]
_APART: dict[str, ModuleType] = {}
"""Our modules whose names are a user's, by name: they are not in `sys.modules`, where the user's have their place."""
_ONE = threading.RLock()


def is_ours(module: str) -> bool:
    """Whether a module is one of our `strategies` or `clients`, by its name and the file that there is.

    Args:
        module: its dotted name.
    """
    package, _, rest = module.partition(".")
    return package in OURS and (not rest or (TOP / package / f"{rest}.py").is_file())


def import_ours(module: str) -> ModuleType:
    """A module of our `strategies` or `clients`; what a user has under this name stays what is imported by it.

    Args:
        module: its dotted name.
    """
    package = module.partition(".")[0]
    with _ONE:
        if not any(_root(name) == package for name in _APART) and _found(package) == TOP / package:
            return importlib.import_module(module)
        if module not in _APART:
            _import_apart(package, module)
        return _APART[module]


def _import_apart(package: str, module: str) -> None:
    """Import one of ours as if the user's were not there, and then have these as they were."""
    theirs = {name: sys.modules.pop(name) for name in list(sys.modules) if _root(name) == package}
    sys.modules.update({name: each for name, each in _APART.items() if _root(name) == package})
    try:
        if package not in sys.modules:
            folder = TOP / package
            spec = importlib.util.spec_from_file_location(
                package, folder / "__init__.py", submodule_search_locations=[str(folder)]
            )
            assert spec is not None
            assert spec.loader is not None
            sys.modules[package] = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(sys.modules[package])
        importlib.import_module(module)  # which looks in the folder of the package, and nowhere else
    finally:
        _APART.update({name: sys.modules.pop(name) for name in list(sys.modules) if _root(name) == package})
        sys.modules.update(theirs)


def _root(name: str) -> str:
    return name.partition(".")[0]


def _found(package: str) -> Path | None:
    """The folder of the package that is imported by a name; None of what is no package, or nowhere."""
    there = sys.modules.get(package)
    if there is not None:
        origin = getattr(there, "__file__", None)
    else:
        spec = importlib.util.find_spec(package)
        origin = spec.origin if spec else None
    return Path(origin).resolve().parent if origin else None


def check_theirs(setting: str, path: str) -> None:
    """Say of an import path that leads nowhere that a package of ours is found in place of a user's.

    Args:
        setting: the setting that has this value, for the error.
        path: the import path.

    Raises:
        UserError: it begins with a package of ours.
    """
    package, rest = (*re.split("[.:]", path, maxsplit=1), "")[:2]
    found = getattr(sys.modules.get(package), "__file__", None)
    if package in OURS and found and Path(found).resolve().parent == TOP / package:
        lacks = f"has no {rest}" if rest else "brings nothing"
        raise UserError(
            f'{setting}="{path}": {package} is a package of fedham-flwr, which {lacks}: wanted another name for a '
            f"folder {package} of yours"
        ) from None
