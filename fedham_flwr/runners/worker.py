"""What a worker of a sharded cohort does: the work of its clients, together, in a process of its own.

It keeps what its clients keep, and hands every change to its caller too. On another machine than the caller's it
writes what it would write into the run's directory to a folder of its own, whose files it hands over.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from flwr.app import Message, RecordDict

from fedham_flwr.core.threads import threads
from fedham_flwr.federation import folders, wire
from fedham_flwr.runners.cohort import CohortGrid
from fedham_flwr.runners.packing import Parcel, States, pack_states, unpack_states, unwrap, wrap
from fedham_flwr.settings import Value
from fedham_flwr.state.held import HeldRecord

KEEP, EXPORT = "clients", "model"
"""Folders of a worker that is on another machine."""


class Hello(NamedTuple):
    """Who a worker is.

    Attributes:
        pid: its process.
        away: it is on another machine than its caller.
    """

    pid: int
    away: bool


class Shard:
    """The work of some clients.

    Args:
        given: settings by key; None for those of the context.
        nodes: the ids of all nodes of the simulation, in the order of their clients.
        home: the machine of the caller; None if that is this one for certain.
        threads: for torch; 1 by default.
    """

    def __init__(
        self, given: Mapping[str, Value] | None, nodes: Sequence[int], home: str | None = None, threads: int = 1
    ) -> None:
        from fedham_flwr.client_app import make_client_app

        self._grid = CohortGrid(make_client_app(given), len(nodes), nodes)
        self._threads = threads
        self._away = home is not None and home != machine()
        self._folder = Path(tempfile.mkdtemp(prefix="fedham-")) if self._away else None
        if self._folder:
            weakref.finalize(self, shutil.rmtree, self._folder, ignore_errors=True)  # also when the process ends

    def hello(self) -> Hello:
        """Who this is."""
        return Hello(os.getpid(), self._away)

    def work(
        self,
        heads: Sequence[tuple[int, str, str]],
        parcel: Parcel,
        files: Mapping[str, bytes],
        wanted: Sequence[Sequence[int]],
        *states: States,
    ) -> tuple[Parcel, States, dict[str, bytes]]:
        """The replies to messages, what the clients keep where that has changed, and the files that they wrote.

        Args:
            heads: of each message its node, type and group.
            parcel: their contents.
            files: of states that the caller has, by name.
            wanted: of each of `states`, the places of clients that were with another worker last.
            states: what clients keep.
        """
        for places, some in zip(wanted, states, strict=True):
            for node, held in unpack_states(some, places).items():
                self._state(node).restore(held)
        contents = unwrap(parcel)
        if self._folder:
            keep, export = self._folder / KEEP, self._folder / EXPORT
            keep.mkdir(exist_ok=True, mode=0o700)
            for name, raw in files.items():
                (keep / name).write_bytes(raw)
            contents = [folders.replace(content, str(keep), str(export)) for content in contents]
        messages = [
            Message(content, node, kind, group_id=group)
            for (node, kind, group), content in zip(heads, contents, strict=True)
        ]
        with threads(self._threads):
            replies = self._grid.send_and_receive(messages)
            told = wrap([_content(reply) for reply in replies])
        changed = {node: self._state(node).changed() for node, _, _ in heads}
        kept = pack_states({node: held for node, held in changed.items() if held is not None})
        return told, kept._replace(alone=self._grid.drop_states()), self._written()

    def engine(self) -> dict[str, object]:
        """As `CohortGrid.engine`."""
        return self._grid.engine()

    def _state(self, node: int) -> HeldRecord:
        state = self._grid.contexts[node].state
        assert isinstance(state, HeldRecord)
        return state

    def _written(self) -> dict[str, bytes]:
        """The models that the clients wrote, which are then gone from here."""
        found: dict[str, bytes] = {}
        if self._folder and (self._folder / EXPORT).is_dir():
            for file in sorted((self._folder / EXPORT).iterdir()):
                found[file.name] = file.read_bytes()
                file.unlink()
        return found


def _content(reply: Message) -> RecordDict:
    """What a reply says; an error that Flower would report as a sentence."""
    return (
        wire.write_failure(reply.error.reason or "no reason given", simulated=True)
        if reply.has_error()
        else reply.content
    )


def machine() -> str:
    """Name of the machine in its Ray cluster."""
    import ray

    return str(ray.get_runtime_context().get_node_id()) if ray.is_initialized() else ""
