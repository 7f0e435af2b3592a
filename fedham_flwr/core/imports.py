"""Objects that a setting names by an import path, `package.module:Object`, and calls of them by keyword.

A module is found in the installed packages, in the current directory and beside the application. Only the name crosses
the network: on a SuperNode the module must be there already.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import hashlib
import importlib
import inspect
import re
import sys
import typing
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

from fedham_flwr.core.errors import UserError, first_line
from fedham_flwr.core.packages import check_theirs

PATH = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*")
BUILT_IN = ("torchvision:",)
"""Prefixes of names that look like an import path and are the package's own."""
SCALARS = (bool, int, float, str)
SETTING_NAMES = (
    "task", "strategy", "model", "dataset", "partitioner", "loss", "optimizer", "metrics", "augmentation", "callbacks",
)  # fmt: skip
"""Settings that an object may be named like, such as a task's function `loss`."""


def is_path(name: str) -> bool:
    """Whether a setting's value names an object by its import path."""
    return bool(PATH.fullmatch(name)) and not name.startswith(BUILT_IN)


def load_object(setting: str, path: str) -> Any:
    """The object that `package.module:Object` names.

    Args:
        setting: the setting that has this value, for the error.
        path: the import path.

    Raises:
        UserError: the module cannot be imported, or has no such object.
    """
    module, _, name = path.partition(":")
    found = load_module(setting, path, module)
    try:
        for part in name.split("."):
            found = getattr(found, part)
    except AttributeError:
        check_theirs(setting, path)
        here = vars(sys.modules[module]).items()
        known = [known for known, value in here if not (known.startswith("_") or inspect.ismodule(value))]
        near = difflib.get_close_matches(name, known, n=1)
        advice = f"did you mean {near[0]}?" if near else f"it has {', '.join(known[:10]) or 'nothing'}"
        raise UserError(f'{setting}="{path}": the module {module} has no {name}; {advice}') from None
    return found


def load_module(setting: str, path: str, module: str) -> Any:
    """A module by its name.

    Args:
        setting: the setting that names it, for the error.
        path: the setting's value.
        module: the module's dotted name.

    Raises:
        UserError: it cannot be imported.
    """
    here = str(Path.cwd())
    if here not in sys.path and "" not in sys.path:
        sys.path.append(here)
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):
            raise UserError(f'{setting}="{path}": {module} needs {error.name}, which is not installed') from error
        check_theirs(setting, path)
        raise UserError(
            f'{setting}="{path}": there is no module {error.name} (looked for beside the application, in {here} and in '
            "the installed packages)"
        ) from error
    except Exception as error:  # whatever the user's own module raises while it is imported
        raise UserError(
            f'{setting}="{path}": {module} cannot be imported: {type(error).__name__}: {first_line(error)}'
        ) from error


def source_digest(path: str) -> str:
    """SHA-256 of the file that an object's module was loaded from; empty if it has none."""
    file = getattr(load_module("partitioner", path, path.partition(":")[0]), "__file__", None)
    return hashlib.sha256(Path(file).read_bytes()).hexdigest() if file else ""


def section_of(path: str) -> str:
    """The section of an object's own settings: its name in lower case, `mymodels:MyNet` -> mynet.

    That of a task's function `loss` is own-loss, since loss is a setting.
    """
    name = short_name(path)
    return f"own-{name}" if name in SETTING_NAMES else name


def short_name(path: str) -> str:
    """An object's own name in lower case, `mymodels:MyNet` -> mynet."""
    return path.rpartition(":")[2].rpartition(".")[2].lower().replace("_", "-")


def settings_class(obj: Any, given: Collection[str] = ()) -> type | None:
    """The dataclass of an object's own settings; None if it has none.

    That is the attribute `Settings`, or the type of its parameter `settings`, or else a dataclass made of its keyword
    parameters whose default is a bool, int, float or str.

    Args:
        obj: a class or a function.
        given: names of parameters that are given otherwise, and so are no settings of its own.

    Raises:
        UserError: the dataclass can be no section: it is not frozen, or a field has no default or one of another type.
    """
    own = getattr(obj, "Settings", None)
    if dataclasses.is_dataclass(own) and isinstance(own, type):
        return _section_class(own)
    parameters, types = _signature(obj)
    declared = types.get("settings")
    if dataclasses.is_dataclass(declared) and isinstance(declared, type):
        return _section_class(declared)
    fields = [
        (name, type(parameter.default), parameter.default)
        for name, parameter in parameters.items()
        if type(parameter.default) in SCALARS and name not in given
    ]
    return _keyword_class(tuple(fields)) if fields else None


@functools.lru_cache(maxsize=64)
def _keyword_class(fields: tuple[tuple[str, type, Any], ...]) -> type:
    """One class for the same parameters, so that settings that are parsed again are equal."""
    given = [(name, kind, dataclasses.field(default=default)) for name, kind, default in fields]
    return dataclasses.make_dataclass("Settings", given, frozen=True)


def _section_class(own: type) -> type:
    """The dataclass, if its fields can be settings."""
    if not own.__dataclass_params__.frozen:  # type: ignore[attr-defined]
        raise UserError(f"{own.__qualname__} holds settings and can be changed: wanted @dataclass(frozen=True)")
    for field in dataclasses.fields(own):
        if type(field.default) not in SCALARS:
            found = "no default" if field.default is dataclasses.MISSING else f"the default {field.default!r}"
            raise UserError(
                f"{own.__qualname__}.{field.name} is a setting and has {found}: wanted a bool, int, float or str"
            )
    return own


def call(setting: str, obj: Callable[..., Any], settings: object = None, **given: Any) -> Any:
    """Call an object with those keyword arguments that its signature names.

    Args:
        setting: the setting that names the object, for the error.
        obj: a class or a function.
        settings: an instance of its `settings_class`, passed as `settings` or field by field.
        given: what there is to pass.

    Raises:
        UserError: it wants something that there is not.
    """
    parameters, _ = _signature(obj)
    if "settings" in parameters and settings is not None:
        given["settings"] = settings
    elif dataclasses.is_dataclass(settings) and not isinstance(settings, type):
        own = {field.name: getattr(settings, field.name) for field in dataclasses.fields(settings)}
        given = {**own, **given}
    variable = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    wanted = [n for n, p in parameters.items() if p.default is p.empty and p.kind not in variable]
    name = getattr(obj, "__name__", type(obj).__name__)
    if missing := [each for each in wanted if each not in given]:
        raise UserError(
            f"{setting}: {name} wants {', '.join(missing)}, which it is not called with; wanted a signature of some of "
            f"{', '.join(given)}, or defaults"
        )
    return obj(**{each: value for each, value in given.items() if each in parameters})


def load_function(setting: str, path: str, own: Any, wanted: str) -> Callable[..., Any]:
    """The function that an import path names: the object, or what it makes if it is a class or needs no argument.

    Args:
        setting: the setting that has this value, for the error.
        path: the import path.
        own: the settings of the object, which it is made or called with; None without.
        wanted: what it should be, for the error.

    Raises:
        UserError: there is no such object, it cannot make a function, or it is none.
    """
    found, what = load_object(setting, path), f'{setting}="{path}"'
    if callable(found) and _makes(found):
        try:
            found = call(setting, found, own)
        except UserError:
            raise
        except Exception as error:  # whatever the user's own code raises
            raise UserError(f"{what} cannot be made: {type(error).__name__}: {first_line(error)}") from error
    elif callable(found) and own is not None:
        found = functools.partial(found, **_keywords(found, own))
    if not callable(found):
        raise UserError(f"{what} gives {type(found).__name__}, and wanted is {wanted}")
    function: Callable[..., Any] = found
    return function


def _makes(found: Any) -> bool:
    """Whether an object makes a function, and is none itself."""
    if isinstance(found, type):
        return True
    try:
        parameters = inspect.signature(found).parameters
    except (TypeError, ValueError):
        return False
    others = [p for p in parameters.values() if p.name != "settings" and p.kind is not p.VAR_KEYWORD]
    return not any(p.default is p.empty or p.kind is p.VAR_POSITIONAL for p in others)


def _keywords(found: Callable[..., Any], own: Any) -> dict[str, object]:
    """A function's own settings as the arguments by which it takes them."""
    if "settings" in inspect.signature(found).parameters:
        return {"settings": own}
    return {field.name: getattr(own, field.name) for field in dataclasses.fields(own)}


def _signature(obj: Any) -> tuple[Mapping[str, inspect.Parameter], Mapping[str, Any]]:
    """An object's parameters and their types."""
    try:
        parameters = inspect.signature(obj).parameters
    except (TypeError, ValueError):
        return {}, {}
    function = getattr(obj, "__init__") if isinstance(obj, type) else obj  # noqa: B009
    try:
        types = typing.get_type_hints(function)
    except Exception:  # a name that is there for type checkers only
        types = {}
    return parameters, types
