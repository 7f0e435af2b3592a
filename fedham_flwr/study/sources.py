"""The sources of methods and of a user's modules, as digests: what is changed in them makes another run."""

from __future__ import annotations

import ast
import contextlib
import importlib.util
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from fedham_flwr import registry
from fedham_flwr.core.files import digest
from fedham_flwr.core.imports import is_path, load_module
from fedham_flwr.core.packages import OURS, TOP, import_ours, is_ours

_PACKAGES = ("site-packages", "dist-packages")


class _Source(NamedTuple):
    """A module's name, its file, and the package that its relative imports start from."""

    name: str
    file: Path
    package: str


def of_method(strategy: str) -> dict[str, str]:
    """Module -> SHA-256 of its source: the two halves of a method, its declaration, and what these import of a user's.

    Args:
        strategy: the setting.

    Raises:
        UserError: there is no such method, or a module of it cannot be imported.
    """
    declared = registry.method(strategy)
    halves = [half if isinstance(half, str) else f"{half.__module__}:" for half in (declared.strategy, declared.client)]
    names = [half.partition(":")[0] for half in halves]
    names += [declared.split.__module__, *([strategy.partition(":")[0]] if is_path(strategy) else [])]
    return _digests(names, "strategy", strategy)


def of_module(setting: str, path: str) -> dict[str, str]:
    """Module -> SHA-256 of its source, of what an import path names, and of what that imports of a user's own.

    Args:
        setting: that names it, for the error.
        path: `package.module:Object`, or a module.

    Raises:
        UserError: it cannot be imported.
    """
    return _digests([path.partition(":")[0]], setting, path)


def _digests(names: list[str], setting: str, value: str) -> dict[str, str]:
    found: dict[str, str] = {}
    todo = []
    for name in names:
        module = import_ours(name) if is_ours(name) else load_module(setting, value, name)
        if file := getattr(module, "__file__", None):
            todo.append(_Source(name, Path(file), module.__package__ or ""))
    while todo:
        source = todo.pop()
        if source.name in found or not source.file.is_file():
            continue
        found[source.name] = digest(source.file)
        if source.file.suffix == ".py" and _is_users(source.file):
            todo += [each for each in _imported(source) if each.name not in found]
    return found


def _imported(source: _Source) -> Iterator[_Source]:
    """The modules of a user's own that a module imports, anywhere in it; none of them is imported here."""
    try:
        tree = ast.parse(source.file.read_bytes())
    except (SyntaxError, ValueError):  # of a file that was changed after it was imported
        return
    for node in ast.walk(tree):
        for name in _names(node, source.package):
            # A name that is an object of a module, and no module, has no spec, or a parent that is no package.
            with contextlib.suppress(ImportError, ValueError, AttributeError):
                if _may_be_users(name) and (spec := importlib.util.find_spec(name)) and spec.origin:
                    package = name if spec.submodule_search_locations is not None else name.rpartition(".")[0]
                    yield _Source(name, Path(spec.origin), package)


def _names(node: ast.AST, package: str) -> Iterator[str]:
    """The full names of what a statement may import, with the packages that they are in."""
    names: list[str] = []
    if isinstance(node, ast.Import):
        names = [alias.name for alias in node.names]
    elif isinstance(node, ast.ImportFrom):
        parts = package.split(".")
        above = parts[: len(parts) - node.level + 1] if node.level else []
        base = ".".join([*above, *([node.module] if node.module else [])])
        names = [f"{base}.{alias.name}" for alias in node.names]
    for name in names:
        parts = name.split(".")
        yield from (".".join(parts[:count]) for count in range(1, len(parts) + 1))


def _may_be_users(name: str) -> bool:
    """Whether a name begins with a module or a package that is a user's own."""
    top = name.partition(".")[0]
    if not top or top in sys.stdlib_module_names or top in (*OURS, __name__.partition(".")[0]):
        return False
    spec = importlib.util.find_spec(top)
    if spec is None:
        return False
    places = [spec.origin] if spec.origin else list(spec.submodule_search_locations or [])
    return any(_is_users(Path(place)) for place in places if place)


def _is_users(file: Path) -> bool:
    """Whether a source is neither ours, nor Python's, nor of an installed package."""
    place, library = file.resolve(), Path(sysconfig.get_paths()["stdlib"]).resolve()
    ours = [TOP / "fedham_flwr", *(TOP / package for package in OURS)]
    if any(place.is_relative_to(folder) for folder in (library, *ours)):
        return False
    return not any(part in _PACKAGES for part in place.parts)
