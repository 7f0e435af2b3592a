"""A study as its file is written: TOML whose shape is checked here; what it means is decided in `plan`."""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fedham_flwr.core.errors import UserError, cause
from fedham_flwr.core.files import LONGEST, SAFE_NAME
from fedham_flwr.settings import defaults

KEYS = ("name", "methods", "floors", "seeds", "clients", "reference", "minutes-per-run", "settings", "method", "task",
        "tune")  # fmt: skip
TUNE_KEYS = ("trials", "seeds", "sampler", "pruner", "together", "rounds", "space", "methods")
SAMPLERS = ("auto", "tpe", "sobol", "random", "grid")
PRUNERS = ("median", "none")
TUNING_SEEDS = (1000,)
MOST_SEEDS = 1000
"""The largest number of seeds: a larger one was meant for a seed."""


@dataclass
class Tuning:
    """The table [tune].

    Attributes:
        trials, seeds, sampler, pruner, together, rounds: as in `planned.Tune`.
        space: of all methods, by setting; None: the common one.
        methods: label -> its own, by setting.
    """

    trials: int
    seeds: tuple[int, ...]
    sampler: str
    pruner: str
    together: int
    rounds: int
    space: dict[str, Any] | None = None
    methods: dict[str, dict[str, Any]] = field(default_factory=dict)


@dataclass
class Document:
    """A study as its file is written.

    Attributes:
        path, text: of the file.
        faults: what is wrong so far, a sentence each.
        name, floors, seeds, reference, minutes: as in `planned.Plan`; an empty reference is not given.
        clients: of every task that does not say; 0: those of the data.
        methods: labels.
        settings: of every run, by key.
        method, task: label -> what its table says, by key.
        tune: None without the table.
    """

    path: Path
    text: str
    faults: list[str] = field(default_factory=list)
    name: str = ""
    floors: bool = True
    seeds: tuple[int, ...] = ()
    reference: str = ""
    clients: int = 0
    minutes: int = 0
    methods: list[str] = field(default_factory=list)
    settings: dict[str, Any] = field(default_factory=dict)
    method: dict[str, dict[str, Any]] = field(default_factory=dict)
    task: dict[str, dict[str, Any]] = field(default_factory=dict)
    tune: Tuning | None = None


def read(path: Path) -> Document:
    """The file of a study, with what is wrong in its shape.

    Args:
        path: of the file.

    Raises:
        UserError: it cannot be read, or is no TOML.
    """
    try:
        text = path.expanduser().read_bytes().decode()
    except OSError as error:
        raise UserError(f"{path} cannot be read ({cause(error)}): wanted a TOML file that describes a study") from error
    except ValueError as error:
        raise UserError(f"{path} is no text in UTF-8: wanted a TOML file that describes a study") from error
    try:
        given = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UserError(_no_toml(path, text, str(error))) from error
    return _Reader(Document(path, text), given).read()


def nearest(word: str, known: Collection[str]) -> str:
    """A question after a word that is unknown: whether the nearest of those known was meant; empty without one.

    Args:
        word: as it was given.
        known: what there is.
    """
    near = difflib.get_close_matches(word.lower().replace("_", "-"), list(known), n=1)
    return f" (did you mean {near[0]}?)" if near else ""


def dotted(table: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A TOML table by dotted keys; what is no table stays as it is.

    Args:
        table: that may have tables in it.
        prefix: of all keys.
    """
    found: dict[str, Any] = {}
    for key, value in table.items():
        found |= dotted(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return found


def _no_toml(path: Path, text: str, said: str) -> str:
    place = re.search(r" \(at (?:line (\d+), column \d+|end of document)\)$", said)
    if not place:
        return f"{path} is no TOML: {said}"
    line = place[1] or max(1, len(text.splitlines()))
    return f"{path}, line {line}, is no TOML: {said[: place.start()]}"


class _Reader:
    """Takes the parts of a document, and notes what is wrong with each."""

    def __init__(self, document: Document, given: dict[str, Any]) -> None:
        self._document, self._given, self._faults = document, given, document.faults

    def read(self) -> Document:
        """All of it."""
        document, given = self._document, self._given
        self._known(given, KEYS, "")
        document.name = self._text(given, "name", document.path.stem)
        if not SAFE_NAME.fullmatch(document.name):
            self._faults.append(f"name = {document.name!r} names a folder: {_SAFE}")
        document.floors = self._kind(given, "floors", bool, True, "true or false")
        document.seeds = self._seeds(given, "seeds", (0,), "seeds")
        document.reference = self._text(given, "reference", "")
        document.clients = self._whole(given, "clients", 0, 1)
        document.minutes = self._whole(given, "minutes-per-run", 0, 1)
        document.methods = self._methods()
        document.settings = dotted(self._table(given, "settings"))
        for name, place in (("method", document.method), ("task", document.task)):
            for label, said in self._table(given, name).items():
                self._label(f"[{name}.{label}]", label)
                place[label] = dotted(self._table({label: said}, label, f"[{name}.{label}]"))
        if "tune" in given:
            document.tune = self._tune(self._table(given, "tune"))
        return document

    def _methods(self) -> list[str]:
        given = self._given.get("methods")
        if not isinstance(given, list) or not given or not all(isinstance(each, str) for each in given):
            said = "is not given" if given is None else f"= {given!r}"
            self._faults.append(f'methods {said}: wanted a list of methods, such as ["fedper", "pfedla"]')
            return []
        for label in given:
            self._label(f"methods names {label!r}", label)
        folded = [label.casefold() for label in given]
        for label in dict.fromkeys(label for at, label in enumerate(given) if label.casefold() in folded[:at]):
            self._faults.append(f"methods names {label!r} twice: wanted it once, or another label for the second one")
        return list(dict.fromkeys(given))

    def _label(self, what: str, label: str) -> None:
        if ":" in label:
            self._faults.append(
                f'{what}: an import path needs a label, such as methods = ["mine"] and [method.mine] with '
                f'strategy = "{label}"'
            )
        elif not SAFE_NAME.fullmatch(label):
            self._faults.append(f"{what}: a label becomes part of file names: {_SAFE}")

    def _tune(self, given: dict[str, Any]) -> Tuning:
        self._known(given, TUNE_KEYS, "[tune] ")
        tune = Tuning(
            self._whole(given, "trials", 8, 1, "[tune] "),
            self._seeds(given, "seeds", TUNING_SEEDS, "[tune] seeds"),
            self._one_of(given, "sampler", SAMPLERS),
            self._one_of(given, "pruner", PRUNERS, "median"),
            self._whole(given, "together", 1, 1, "[tune] "),
            self._whole(given, "rounds", 0, 0, "[tune] "),
        )
        if "space" in given:
            tune.space = self._table(given, "space", "[tune.space]")
        for label, said in self._table(given, "methods", "[tune.methods]").items():
            tune.methods[label] = self._table({label: said}, label, f"[tune.methods.{label}]")
        return tune

    def _known(self, given: Mapping[str, Any], known: tuple[str, ...], place: str) -> None:
        for key in given:
            if key not in known:
                setting = not place and (key in defaults() or any(each.startswith(f"{key}.") for each in defaults()))
                advice = " (a setting belongs in [settings])" if setting else nearest(key, known)
                self._faults.append(f"{place}there is no key {key}{advice}: wanted {', '.join(known)}")

    def _table(self, given: Mapping[str, Any], key: str, place: str = "") -> dict[str, Any]:
        found = given.get(key, {})
        if isinstance(found, dict):
            return found
        self._faults.append(f"{place or f'[{key}]'} is {found!r}: wanted a table")
        return {}

    def _kind(self, given: Mapping[str, Any], key: str, kind: type, default: Any, wanted: str) -> Any:
        found = given.get(key, default)
        if type(found) is kind:
            return found
        self._faults.append(f"{key} = {found!r}: wanted {wanted}")
        return default

    def _text(self, given: Mapping[str, Any], key: str, default: str) -> str:
        return str(self._kind(given, key, str, default, "a text"))

    def _whole(self, given: Mapping[str, Any], key: str, default: int, least: int, place: str = "") -> int:
        found = given.get(key, default)
        if key in given and (type(found) is not int or found < least):
            self._faults.append(f"{place}{key} = {found!r}: wanted a whole number of at least {least}")
            return default
        return int(found)

    def _one_of(self, given: Mapping[str, Any], key: str, known: tuple[str, ...], default: str = "auto") -> str:
        found = given.get(key, default)
        if found in known:
            return str(found)
        near = nearest(found, known) if isinstance(found, str) else ""
        self._faults.append(f"[tune] {key} = {found!r}{near}: wanted one of {', '.join(known)}")
        return default

    def _seeds(self, given: Mapping[str, Any], key: str, default: tuple[int, ...], what: str) -> tuple[int, ...]:
        found = given.get(key, list(default))
        if what == "seeds" and type(found) is int and 0 < found <= MOST_SEEDS:
            return tuple(range(found))
        whole = isinstance(found, list) and all(type(seed) is int and seed >= 0 for seed in found)
        if whole and found and len(set(found)) == len(found):
            return tuple(found)
        number = f", or their number, up to {MOST_SEEDS}" if what == "seeds" else ""
        self._faults.append(f"{what} = {found!r}: wanted a list of different whole numbers from 0 up{number}")
        return default


_SAFE = f"wanted letters, digits, hyphens, underscores and dots, at most {LONGEST}, and no dot in front"
