"""A SuperNode's own configuration: its client id, its data and its state directory, as it is started with them."""

from __future__ import annotations

import os
import shutil
import stat
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from fedham_flwr.core.errors import UserError
from fedham_flwr.core.imports import is_path
from fedham_flwr.data.clients import open_node
from fedham_flwr.data.own import open_own
from fedham_flwr.doctor.findings import LEAST_FREE, Finding, fault, note, ok, size
from fedham_flwr.federation.node import as_written_there
from fedham_flwr.federation.roster import identify
from fedham_flwr.models import client_models
from fedham_flwr.settings import Value, parse

KNOWN = ("client-id", "data-path", "state-dir", "model", "cross-evaluation", "partition-id", "num-partitions")
"""What a node config may say."""


def findings(config: str, given: Mapping[str, Value]) -> Iterator[Finding]:
    """What is to be said of a node config.

    Args:
        config: as for `flower-supernode --node-config`.
        given: the settings of the runs that it is for, by key: columns, target, seed, cache-dir.
    """
    from fedham_flwr.cli import overrides

    try:
        node = overrides([config])
    except UserError as error:
        yield fault("node", "node-config", str(error).replace("-c ", "--node-config ", 1))
        return
    for key in sorted(key for key in node.keys() - set(KNOWN) if not key.startswith("table.")):
        yield note("node", key, f"{node[key]!r} is read by nobody", f"one of {', '.join(KNOWN)}, and table.*")
    yield _id(node)
    if "model" in node:
        wrong = client_models.unknown(str(node["model"]))
        yield (
            fault("node", "model", wrong) if wrong else ok("node", "model", f"{node['model']}, if the method allows it")
        )
    yield from _data(node, given)
    yield from _state(node)
    takes = node.get("cross-evaluation", False)
    if not isinstance(takes, bool):
        yield fault("node", "cross-evaluation", f"{takes!r}", "true or false")
    else:
        yield ok("node", "cross-evaluation", f"{str(takes).lower()}: this client's model " + (
            "goes to the others, if a run asks for it" if takes else "is not sent for it"))  # fmt: skip


def _id(node: Mapping[str, Value]) -> Finding:
    try:
        return ok("node", "client-id", identify(node))
    except UserError as error:
        return fault("node", "client-id", str(error))


def _data(node: Mapping[str, Value], given: Mapping[str, Value]) -> Iterator[Finding]:
    """The data, opened as a run would with the settings that are given here."""
    try:
        settings = parse(given)
        if is_path(settings.dataset):
            data = open_own(settings.data(), 0, 1, str(node.get("data-path", "")))
        elif "data-path" in node:
            data = open_node(as_written_there(settings.data(), node), str(node["data-path"]))
        else:
            yield fault("node", "data-path", "is not in the node config", 'data-path="...", a file or a folder')
            return
    except UserError as error:
        hint = "" if given else "settings that the run has, such as label-column, are given here by -c"
        yield fault("node", "data-path", str(error), "", hint)
        return
    counts = ", ".join(f"{count} {which}" for which, count in data.counts().items())
    told = f"{data.kind}, a sample is {data.shape}, target {data.target}: {counts}"
    yield ok("node", "data-path", told)
    if data.classes:
        yield ok("node", "classes", ", ".join(data.classes[:12]) + (", ..." if len(data.classes) > 12 else ""))
    if data.scaling:
        yield ok(
            "node", "columns", ", ".join(data.scaling.names[:12]) + (", ..." if len(data.scaling.names) > 12 else "")
        )
    for which in ("train", "test"):
        if not data.counts().get(which):
            yield note("node", "data-path", f"it has no samples in {which}")
    labels = data.label_counts("train")
    if data.target == "class" and sum(n > 0 for n in labels) == 1:
        yield note("node", "data-path", "it has one class in training")


def _state(node: Mapping[str, Value]) -> Iterator[Finding]:
    """The state directory: written, private, and with room."""
    if "state-dir" not in node:
        yield note(
            "node", "state-dir", "is not in the node config", "",
            "without it the client's personal layers and its own model are gone when the SuperNode ends",
        )  # fmt: skip
        return
    folder = Path(os.path.abspath(Path(str(node["state-dir"])).expanduser()))
    there = next(parent for parent in (folder, *folder.parents) if parent.exists())
    try:
        with tempfile.NamedTemporaryFile(dir=there, prefix=".fedham-doctor-"):
            free = shutil.disk_usage(there).free
    except OSError as error:
        yield fault("node", "state-dir", f"{folder} cannot be written ({error.strerror or error})", "",
                    "give it to the user that the SuperNode runs as")  # fmt: skip
        return
    mode = stat.S_IMODE(there.stat().st_mode)
    told = f"{folder}{'' if there == folder else ' (not there yet, and would be made)'}, {size(free)} free"
    if there == folder and mode & 0o077:
        yield fault("node", "state-dir", f"{told}, mode {mode:04o}", "0700, for nobody else to read",
                    f"chmod 700 {folder}")  # fmt: skip
    elif free < LEAST_FREE:
        yield note("node", "state-dir", told, "", "make room")
    else:
        yield ok("node", "state-dir", told)
