"""Which network each client has, where clients have different ones: what the setting `client-models` says.

It is empty, where all clients have `model`; names of networks with commas between, dealt in turn by the numbers of the
partitions; or the path of a TOML file with a line `client = "network"` for each client that has another than `model`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path

from fedham_flwr.core.client_tables import read_client_table
from fedham_flwr.core.errors import UserError
from fedham_flwr.core.imports import is_path
from fedham_flwr.models import MODELS
from fedham_flwr.models.hub_folder import HUB
from fedham_flwr.models.torchvision_models import TORCHVISION

FILE = ".toml"
"""How the path of a table ends."""


def is_table(given: str) -> bool:
    """Whether the setting is the path of a table."""
    return given.endswith(FILE)


def names_of(given: str) -> tuple[str, ...]:
    """The networks that the setting names, in the order in which they are dealt; none of a table.

    Args:
        given: the setting.
    """
    return () if is_table(given) or not given else tuple(name.strip() for name in given.split(","))


def faults(given: str) -> list[str]:
    """What is wrong with the setting, as far as it can be told without its table.

    Args:
        given: the setting.
    """
    return [f"client-models={given!r}: {fault}" for name in names_of(given) if (fault := unknown(name))]


def unknown(name: str) -> str:
    """Why a name is none of a network; empty if it is one."""
    if name in ("auto", *MODELS, HUB) or is_path(name) or name.startswith(TORCHVISION):
        return ""
    return (
        f"'{name}' is no network: wanted {', '.join(('auto', *MODELS, HUB))}, '{TORCHVISION}<name>' or an import path "
        "'package.module:Object'"
    )


def refusal(what: str, strategy: str, others: Sequence[str]) -> str:
    """Why a method takes no network of a client's own.

    Args:
        what: the setting that asks for it, as it is written.
        strategy: the method.
        others: names of those that do.
    """
    return (
        f"{what} gives clients networks of their own, and strategy={strategy} makes one model of theirs, which must be "
        f"alike: wanted strategy {', '.join(others)}, of which no client sends a network"
    )


def network_of(given: str, model: str, client: str, number: int | None) -> str:
    """The network of a client.

    Args:
        given: the setting.
        model: the network of those that it does not name.
        client: its id.
        number: of its partition; None of a client that has data of its own.

    Raises:
        UserError: the table cannot be read, or networks are dealt and the client has no number.
    """
    if not given:
        return model
    if is_table(given):
        path = os.path.abspath(Path(given).expanduser())
        try:
            changed = os.stat(path).st_mtime_ns
        except OSError as error:
            raise UserError(
                f"client-models={given!r}: {path} can't be read ({error.strerror}); wanted a TOML file with lines "
                'client = "network", where each client runs; a SuperNode can say model="..." in its node config'
            ) from error
        return _table(given, path, changed).get(client, model)
    if number is None:
        raise UserError(
            f"client-models={given!r} deals networks by the number of a partition, and client {client} has data of its "
            'own: give its SuperNode model="..." in its node config'
        )
    names = names_of(given)
    return names[number % len(names)]


def named_in(given: str) -> Mapping[str, str]:
    """The clients that a table names, and their networks; none where there is no table, or none in this place.

    Args:
        given: the setting.

    Raises:
        UserError: it is not what it should be.
    """
    path = os.path.abspath(Path(given).expanduser())
    return _table(given, path, os.stat(path).st_mtime_ns) if is_table(given) and os.path.exists(path) else {}


def named(given: str) -> tuple[str, ...]:
    """All networks that the setting names, dealt or in its table, each once.

    Args:
        given: the setting.

    Raises:
        UserError: the table is not what it should be.
    """
    return tuple(dict.fromkeys((*names_of(given), *named_in(given).values())))


@lru_cache(maxsize=2)
def _table(given: str, _path: str, _changed: int) -> Mapping[str, str]:
    """What a table says; read once, as long as the file does not change."""
    document = read_client_table("client-models", given, "network")
    for client, name in document.items():
        if fault := unknown(name):
            raise UserError(f"client-models={given!r} has {client} = {name!r}: {fault}")
    return document
