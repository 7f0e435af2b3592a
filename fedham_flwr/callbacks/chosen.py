"""The callbacks of a run: those that the settings name, and objects that a program gives."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from typing import Any, NamedTuple

from fedham_flwr.callbacks.early_stopping import EarlyStopping
from fedham_flwr.callbacks.protocol import Callback
from fedham_flwr.callbacks.tracker import Tracker
from fedham_flwr.core.callback_settings import EARLY_STOPPING
from fedham_flwr.core.errors import UserError, described
from fedham_flwr.core.imports import call, is_path, load_object, section_of
from fedham_flwr.run_settings import Settings

QUESTIONS = ("on_start", "on_round", "on_end")


class Named(NamedTuple):
    """A callback, and what it is called in sentences."""

    name: str
    callback: Callback


def chosen(settings: Settings, objects: Sequence[Callback] = ()) -> tuple[Named, ...]:
    """A run's callbacks in their order: of the settings, given as objects, trackers.

    Args:
        settings: the run's.
        objects: given by a program.

    Raises:
        UserError: a package is not installed, or an import path leads to no callback.
    """
    check_callbacks(settings)
    found = [Named(name, _made(name, settings)) for name in settings.callbacks.split()]
    found += [Named(type(one).__name__, one) for one in checked(objects)]
    return (*found, *(Named(name, _tracker(name, settings)) for name in settings.tracker.split()))


def check_callbacks(settings: Settings) -> None:
    """Refuse trackers whose packages are not installed, and classes that are none of callbacks, without making any.

    Args:
        settings: the run's.

    Raises:
        UserError: there is such a one.
    """
    for name in settings.tracker.split():
        if importlib.util.find_spec(name) is None:
            raise UserError(f"tracker=\"{name}\" needs the package {name}: pip install 'fedham-flwr[{name}]'")
    for name in filter(is_path, settings.callbacks.split()):
        found = load_object("callbacks", name)
        if isinstance(found, type) or not callable(found):
            _check_answers(found, f'callbacks="{name}" is {_kind(found)}')


def checked(objects: Sequence[Any]) -> Sequence[Callback]:
    """The objects, if all of them are callbacks.

    Raises:
        UserError: one is none.
    """
    for one in objects:
        _check(one, f"callbacks has {_kind(one)}")
    return objects


def names_and_objects(given: Any) -> tuple[str, tuple[Callback, ...]]:
    """What a program gives as callbacks, as the setting of that name and what it has no name for.

    Args:
        given: a name, a callback, or a list of both.

    Raises:
        UserError: one is neither.
    """
    several = list(given) if isinstance(given, list | tuple) else [given]
    objects = [one for one in several if not isinstance(one, str)]
    return " ".join(one for one in several if isinstance(one, str)), tuple(checked(objects))


def _made(name: str, settings: Settings) -> Callback:
    if name == EARLY_STOPPING:
        return EarlyStopping(settings.early_stopping)
    found, what = load_object("callbacks", name), f'callbacks="{name}"'
    if isinstance(found, type) or (callable(found) and not isinstance(found, Callback)):
        try:
            found = call("callbacks", found, settings.section(section_of(name)))
        except UserError:
            raise
        except Exception as error:  # whatever the user's own code raises
            raise UserError(f"{what} cannot be made: {described(error)}") from error
    return _check(found, f"{what} gives {_kind(found)}")


def _check(found: Any, what: str) -> Callback:
    if isinstance(found, type):
        raise UserError(f"{what}, and wanted is an object of it: {found.__name__}()")
    _check_answers(found, what)
    callback: Callback = found
    return callback


def _check_answers(found: Any, what: str) -> None:
    if lacking := [name for name in QUESTIONS if not callable(getattr(found, name, None))]:
        raise UserError(
            f"{what} without {', '.join(lacking)}, and wanted is a callback: derive its class from fedham_flwr.Callback"
        )


def _kind(found: Any) -> str:
    return f"the class {found.__name__}" if isinstance(found, type) else type(found).__name__


def _tracker(name: str, settings: Settings) -> Tracker:
    module = importlib.import_module(f"fedham_flwr.callbacks.{name}")
    return Tracker(name, module.Log(settings.tracking), settings.tracking)
