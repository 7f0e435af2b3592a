"""A client's node: where its data are, and where it writes what is its own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from flwr.app import Context

from fedham_flwr import registry
from fedham_flwr.core.errors import UserError
from fedham_flwr.core.files import SAFE_NAME, safe_name
from fedham_flwr.core.imports import is_path, section_of
from fedham_flwr.data.client_data import ClientData
from fedham_flwr.data.clients import open_node, open_partitions
from fedham_flwr.data.data_settings import DataSettings
from fedham_flwr.data.own import open_own
from fedham_flwr.federation.messages import Download
from fedham_flwr.federation.roster import identify
from fedham_flwr.models import client_models
from fedham_flwr.run_settings import Settings
from fedham_flwr.settings import Value
from fedham_flwr.state.files import private_folder
from fedham_flwr.state.held import HeldRecord


class Place(NamedTuple):
    """Where a client writes what is its own; None for nowhere."""

    state: Path | None = None
    export: Path | None = None
    own: bool = True  # on a node of its own, and not in a simulation


def place_of(node: Mapping[str, Value], download: Download) -> Place:
    """Where this client writes: on a node of its own never where the server says, since the disk is not the server's.

    Raises:
        UserError: the server's name of the training cannot be that of a folder, or a folder cannot be made.
    """
    if "state-dir" in node:
        if not SAFE_NAME.fullmatch(download.training):
            raise UserError(
                f"training={download.training!r}, which the server gives, must be 1 to 64 letters, digits, '.', '_' or "
                "'-', not starting with '.', since it names a folder"
            )
        folder = Path(str(node["state-dir"])).expanduser() / download.training
        return Place(folder, _private(folder / "model") if download.closing else None)
    if not _simulated(node):
        return Place()
    keep, export = (Path(given) if given else None for given in (download.keep, download.export))
    return Place(keep, export, own=False)


def client_of(node: Mapping[str, Value], data: ClientData) -> str:
    """A client's id: on a node of its own what its config says, in a simulation the name of its data.

    There the number of its partition says where it comes in an order of sizes, which other data may change.

    Args:
        node: its node config.
        data: the client's.

    Raises:
        UserError: as for `identify`.
    """
    return safe_name(data.name) if _simulated(node) else identify(node)


def network_of(node: Mapping[str, Value], settings: Settings, client: str) -> str:
    """The one place that says which network a client has: what its node config says, else what the run does.

    Args:
        node: its node config.
        settings: the run's.
        client: its id.

    Raises:
        UserError: the method has no room for networks that differ, or this is none.
    """
    if "model" not in node:
        number = int(node["partition-id"]) if "partition-id" in node else None
        return client_models.network_of(settings.client_models, settings.model, client, number)
    name, what = str(node["model"]), f'model="{node["model"]}" in the node config of client {client}'
    if fault := client_models.unknown(name):
        raise UserError(f"{what}: {fault}")
    if name != settings.model and not registry.method(settings.strategy).own_networks:
        raise UserError(client_models.refusal(what, settings.strategy, registry.with_own_networks()))
    return name


def _simulated(node: Mapping[str, Value]) -> bool:
    return {"partition-id", "num-partitions"} <= node.keys() and not {"client-id", "data-path"} & node.keys()


def _private(folder: Path) -> Path:
    try:
        private_folder(folder)
    except OSError as error:
        raise UserError(f"the folder {folder} for a client's own model cannot be made: {error.strerror}") from error
    return folder


def open_data(context: Context, settings: Settings, pin: str = "", training: str = "") -> ClientData:
    """A client's data; where it stays in this process they are opened once, and the data set is looked at once.

    Args:
        context: of the node.
        settings: the run's.
        pin: of the data that a simulation began with, which are opened whatever there is now; empty at its start. Of a
            node that has its own: the categories that the sites have agreed upon, if they have.
        training: name of the training that the message is part of; empty at its start.
    """
    held, node = context.state, context.node_config
    _check_own(node, settings)
    if not isinstance(held, HeldRecord):
        return _opened(context, settings, pin, training)
    if held.data is None:
        if is_path(settings.dataset) or "data-path" in node:
            held.data = _opened(context, settings, pin, training)
        else:
            if "open" not in held.shared:
                held.shared["open"] = open_partitions(settings.data(), int(node["num-partitions"]), pin)
            held.data = held.shared["open"](int(node["partition-id"]))
    assert held.data is not None
    return held.data


def _check_own(node: Mapping[str, Value], settings: Settings) -> None:
    """Refuse settings of the method in a node's config: what clients exchange fits together for they have the same."""
    section = section_of(settings.strategy)
    if own := [key for key in node if key.startswith(f"{section}.")]:
        raise UserError(
            f"the node config has {own[0]}={node[own[0]]!r}, and the settings of a method are the run's, the same for "
            "every client: give it to the run, or leave it out"
        )


def _opened(context: Context, settings: Settings, pin: str, training: str) -> ClientData:
    node = context.node_config
    if is_path(settings.dataset):
        number, clients = int(node.get("partition-id", 0)), int(node.get("num-partitions", 1))
        return open_own(settings.data(), number, clients, str(node.get("data-path", "")))
    if "data-path" in node:
        data = as_written_there(settings.data(), node)
        # What the server tells of a node's data are the categories that the sites agree upon.
        return open_node(replace(data, categories=pin), str(node["data-path"]), training)
    if "partition-id" not in node or "num-partitions" not in node:
        raise UserError(
            f"the node config of client {identify(node)} names no data: give the SuperNode "
            f"--node-config 'data-path=\"...\"', or partition-id and num-partitions"
        )
    return open_partitions(settings.data(), int(node["num-partitions"]), pin)(int(node["partition-id"]))


def as_written_there(data: DataSettings, node: Mapping[str, Value]) -> DataSettings:
    """The settings under `table.` with those that the node's config has instead, since each site writes its own files.

    Args:
        data: the run's.
        node: its config.

    Raises:
        UserError: the config has one that there isn't.
    """
    consent = ("table.categories", "shared")  # to send words, which is no setting
    named = [item for item in node.items() if item[0].startswith("table.") and item != consent]
    given = {key.removeprefix("table."): value for key, value in named}
    own = ("separator", "decimal", "missing", "encoding", "unlabelled", "schema")
    if strange := [key for key in given if key not in own]:
        raise UserError(
            f"the node config has table.{strange[0]}, but a node can have only these of its own: "
            f"{', '.join(f'table.{key}' for key in own)}"
        )
    texts: dict[str, Any] = {key: str(value) for key, value in given.items()}
    return replace(data, table=replace(data.table, **texts)) if texts else data
