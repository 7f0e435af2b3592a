"""The key of a run: a digest of all that decides its results, so that none is done twice or taken for another.

In it are the settings with their defaults, without those of other methods and networks; the number of clients; the
engine and the kind of device; the version of this package; the content of the files that settings name, wherever they
lie; the sources of a method's own files and of the modules that import paths name, with what these import of a user's
own.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal

from fedham_flwr import __version__, registry
from fedham_flwr.core.errors import UserError, cause
from fedham_flwr.core.files import digest
from fedham_flwr.core.imports import is_path, section_of
from fedham_flwr.data.cache import cache_root, unwritable
from fedham_flwr.data.sources import content_key, local_path
from fedham_flwr.models import NETWORKS, client_models
from fedham_flwr.models.torchvision_models import TORCHVISION
from fedham_flwr.sections import OBJECTS
from fedham_flwr.settings import Value, flatten, parse
from fedham_flwr.study.sources import of_method, of_module

ENGINE: Literal["cohort"] = "cohort"
"""What carries out the runs of a study."""
LEFT_OUT = ("results-dir", "resume", "cache-dir", "checkpoint-every")
"""Settings that decide where something is kept, and nothing about results."""
FILES = (
    "class-table", "table.schema", "text.tokenizer", "torchvision.weights", "hub.folder", "lora.base",
    "clustered.table",
)  # fmt: skip
"""Settings that name a file or a folder of some, whose content counts in place of its name."""


class Contents:
    """Digests of files, folders and sources that settings name, each made once: as they are when a study is read."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, ...], object] = {}

    def data(self, source: str, cache_dir: str) -> str:
        """What the setting `dataset` leads to; of a file its ending too, since that decides how it is read.

        Args:
            source: the setting.
            cache_dir: the setting, where digests of folders are remembered.

        Raises:
            UserError: there is nothing, or the cache cannot be written.
        """
        return str(self._once(("data", source), lambda: _data(source, cache_dir)))

    def file(self, setting: str, path: str) -> object:
        """SHA-256 of a file; empty if the setting names none.

        Args:
            setting: that names it, for the error.
            path: the setting's value.

        Raises:
            UserError: it cannot be read.
        """
        return self._once((setting, path), lambda: _file(setting, path)) if path else ""

    def sources(self, setting: str, name: str) -> object:
        """Module -> SHA-256 of its source, of what a setting names and what that imports of a user's own.

        Args:
            setting: `strategy`, or another that may have an import path as its value.
            name: the value, or one of its names.

        Raises:
            UserError: it cannot be imported.
        """
        return self._once(
            (setting, name), lambda: of_method(name) if setting == "strategy" else of_module(setting, name)
        )

    def _once(self, key: tuple[str, ...], make: Callable[[], object]) -> object:
        if key not in self._known:
            self._known[key] = make()
        return self._known[key]


def key_of(settings: Mapping[str, Value], clients: int, contents: Contents | None = None) -> str:
    """The key of a run, 32 hexadecimal digits.

    Args:
        settings: by key; what is not named has its default, and is the same run as one that names it.
        clients: how many.
        contents: digests that are known already.

    Raises:
        UserError: the settings are wrong, or something that they name is not there.
    """
    known, flat = contents or Contents(), flatten(parse(settings))
    read = {key: value for key, value in flat.items() if key not in LEFT_OUT and _is_read(key, flat)}
    files = [key for key in _files(str(flat["client-models"])) if key in read]
    read |= {"device": _device(str(flat["device"])), **dict.fromkeys(files, "")}
    if not is_path(str(flat["dataset"])):
        read["dataset"] = known.data(str(flat["dataset"]), str(flat["cache-dir"]))
    parts = {
        "settings": read,
        "files": {key: known.file(key, str(flat[key])) for key in files},
        "sources": _sources(flat, known),
        "clients": clients,
        "engine": ENGINE,
        "version": __version__,
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]


def _files(models: str) -> tuple[str, ...]:
    """The settings that name files; `client-models`, as it is given, does if it is a table."""
    return (*FILES, "client-models") if client_models.is_table(models) else FILES


def _is_read(key: str, flat: Mapping[str, Value]) -> bool:
    """Whether a setting is not one of another method, or of another network than the one that is named."""
    section, _, name = key.rpartition(".")
    if not section or not name:
        return True
    if section in registry.METHODS:
        return section == section_of(str(flat["strategy"]))
    network = str(flat["model"])
    if section in NETWORKS and network != "auto" and not flat["client-models"]:
        built = TORCHVISION.rstrip(":") if network.startswith(TORCHVISION) else section_of(network)
        return section == built
    return True


def _device(name: str) -> str:
    """The kind of device that a setting stands for here."""
    import torch

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return name.partition(":")[0]


def _sources(flat: Mapping[str, Value], known: Contents) -> dict[str, object]:
    """Of each setting that names objects their sources."""
    found = {"strategy": known.sources("strategy", str(flat["strategy"]))}
    for setting in OBJECTS:
        value = str(flat.get(setting, ""))
        every = client_models.named(value) if setting == "client-models" else value.split()
        names = [name for name in every if is_path(name)]
        if setting != "strategy" and names:
            found[setting] = [known.sources(setting, name) for name in names]
    if task := str(flat["task"]):
        found["task"] = known.sources("task", task)
    return found


def _data(source: str, cache_dir: str) -> str:
    root, path = cache_root(cache_dir), local_path(source)
    try:
        root.mkdir(parents=True, exist_ok=True)
        content = content_key(source, root / "digests.json")
    except OSError as error:
        raise unwritable(root, error) from error
    return content if path is None or path.is_dir() else f"{content}{''.join(path.suffixes).lower()}"


def _file(setting: str, path: str) -> object:
    file = Path(os.path.abspath(Path(path).expanduser()))
    try:
        if file.is_dir():
            return {each.name: digest(each) for each in sorted(file.iterdir()) if each.is_file()}
        return digest(file)
    except OSError as error:
        raise UserError(f"{setting}={path!r}: {file} cannot be read ({cause(error)})") from error
