"""A cohort over several processes: Ray actors of ours, each with an engine and its own clients and what they keep.

A shard of a cohort is one message, however many clients it has. A client stays with its actor, so that nothing of what
it keeps travels. An actor that dies is started again: the clients of its shard fail in that exchange, and go on from
their files, if they have any.
"""

from __future__ import annotations

import dataclasses
import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from flwr.app import Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.constant import ErrorCode
from flwr.common.serde import recorddict_from_proto, recorddict_to_proto
from flwr.proto.recorddict_pb2 import RecordDict as RecordDictProto  # pylint: disable=E0611
from flwr.serverapp import ServerApp

from fedham_flwr.core.threads import one_thread
from fedham_flwr.federation.direct import Direct, Reply
from fedham_flwr.federation.messages import Download, Extras
from fedham_flwr.runners.cohort import CohortGrid
from fedham_flwr.runners.in_process import InProcessGrid, run_on
from fedham_flwr.runners.packing import Packed, pack, unpack
from fedham_flwr.settings import Value

log = logging.getLogger("fedham_flwr")


class Parcel(NamedTuple):
    """The contents of several messages, for another process.

    Attributes:
        told: of each, a value without its tensors, or the bytes of a record.
        tensors: the trees of all values, two of each: of the model, and of the method's own.
    """

    told: list[Download | Reply | bytes]
    tensors: Packed


def wrap(contents: Sequence[RecordDict]) -> Parcel:
    """The contents of messages as one parcel."""
    told: list[Download | Reply | bytes] = []
    trees = []
    for content in contents:
        value = content.value if isinstance(content, Direct) else None
        if isinstance(value, Download):
            trees += [value.params, value.extras.tensors]
            told.append(dataclasses.replace(value, params={}, extras=Extras({}, value.extras.facts)))
        elif isinstance(value, Reply):
            trees += [value.params, value.extras]
            told.append(value._replace(params={}, extras={}))
        else:
            told.append(recorddict_to_proto(content).SerializeToString())
    return Parcel(told, pack(trees))


def unwrap(parcel: Parcel) -> list[RecordDict]:
    """The inverse of `wrap`."""
    trees, contents = iter(unpack(parcel.tensors)), []
    for value in parcel.told:
        if isinstance(value, bytes):
            contents.append(recorddict_from_proto(RecordDictProto.FromString(value)))
            continue
        params, more = next(trees), next(trees)
        if isinstance(value, Download):
            extras = Extras(more, value.extras.facts)
            contents.append(Direct(dataclasses.replace(value, params=params, extras=extras)))
        else:
            contents.append(Direct(value._replace(params=params, extras=more)))
    return contents


class Shard:
    """What an actor does: the work of its clients, together.

    Args:
        given: settings by key; None for those of the context.
        nodes: the ids of all nodes of the simulation, in the order of their clients.
    """

    def __init__(self, given: Mapping[str, Value] | None, nodes: Sequence[int]) -> None:
        from fedham_flwr.client_app import make_client_app

        self._grid = CohortGrid(make_client_app(given), len(nodes), nodes)

    def work(self, heads: Sequence[tuple[int, str, str]], parcel: Parcel) -> Parcel:
        """The replies to messages.

        Args:
            heads: of each its node, type and group.
            parcel: their contents.
        """
        contents = unwrap(parcel)
        messages = [
            Message(content, node, kind, group_id=group)
            for (node, kind, group), content in zip(heads, contents, strict=True)
        ]
        with one_thread():
            replies = self._grid.send_and_receive(messages)
            return wrap([reply.content for reply in replies])

    def write_states(self) -> None:
        """As `CohortGrid.write_states`."""
        self._grid.write_states()

    def engine(self) -> dict[str, object]:
        """As `CohortGrid.engine`."""
        return self._grid.engine()

    def pid(self) -> int:
        """The process that this runs in."""
        return os.getpid()


class ShardedGrid(InProcessGrid):
    """Nodes of a simulation whose work is done by several actors.

    Args:
        given: settings by key.
        num_supernodes: number of nodes.
        num_cpus: how many actors there are, each with one processor.
    """

    def __init__(self, given: Mapping[str, Value] | None, num_supernodes: int, num_cpus: int) -> None:
        super().__init__(ClientApp(), num_supernodes)
        self._given, self._ids = given, list(self.contexts)
        # Client 0 has the most samples: there and back again, so that no actor has the larger of every pair.
        turns = [*range(num_cpus), *reversed(range(num_cpus))]
        self._owner = {node: turns[place % len(turns)] for place, node in enumerate(self._ids)}
        self._actors = [self._start() for _ in range(num_cpus)]

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """The replies to messages pushed before; each is given once."""
        import ray

        shards: list[list[Message]] = [[] for _ in self._actors]
        for one in message_ids:
            if one in self._waiting:
                message = self._waiting.pop(one)
                shards[self._owner[message.metadata.dst_node_id]].append(message)
        asked = {}
        for number, messages in enumerate(shards):
            if messages:
                told = [(m.metadata.dst_node_id, m.metadata.message_type, m.metadata.group_id) for m in messages]
                parcel = wrap([message.content for message in messages])
                asked[number] = self._actors[number].work.remote(told, parcel)
        replies: list[Message] = []
        for number, reference in asked.items():
            try:
                contents: Sequence[RecordDict | Error] = unwrap(self._get(reference))
            except ray.exceptions.RayActorError as error:
                log.warning("a worker of the cohort died, and is started again: %s", str(error).partition("\n")[0])
                self._actors[number] = self._start()
                reason = "the worker that trained this client died"
                contents = [Error(ErrorCode.CLIENT_APP_CRASHED, reason)] * len(shards[number])
            replies += [Message(c, reply_to=m) for c, m in zip(contents, shards[number], strict=True)]
        return replies

    def write_states(self) -> None:
        """As `CohortGrid.write_states`."""
        for reference in [actor.write_states.remote() for actor in self._actors]:
            self._get(reference)

    def engine(self) -> dict[str, object]:
        """As `CohortGrid.engine`, summed up over the actors."""
        found: dict[str, object] = {}
        alone: dict[str, int] = {}
        together = 0
        for reference in [actor.engine.remote() for actor in self._actors]:
            told = self._get(reference)
            together += told.get("together", 0)
            for kind, count in told.get("alone", {}).items():
                alone[kind] = alone.get(kind, 0) + count
            found |= told
        return {**found, "together": together, "alone": alone, "workers": len(self._actors)}

    def _get(self, reference: Any) -> Any:
        import ray

        return ray.get(reference)

    def _start(self) -> Any:
        import ray

        return ray.remote(num_cpus=1)(Shard).remote(self._given, self._ids)


def run_sharded(server_app: ServerApp, given: Mapping[str, Value], num_supernodes: int, num_cpus: int) -> None:
    """Run a federation to the end, the clients in actors.

    Args:
        server_app: the server's app.
        given: settings by key.
        num_supernodes: number of clients.
        num_cpus: number of actors.

    Raises:
        UserError: as the server's app raises it.
    """
    import ray

    from fedham_flwr.runners.ray import prepare_environment

    prepare_environment()
    ours = not ray.is_initialized()
    if ours:
        own = {} if os.environ.get("RAY_ADDRESS") else {"num_cpus": num_cpus, "include_dashboard": False}
        ray.init(logging_level="error", log_to_driver=False, **own)
    try:
        run_on(ShardedGrid(given, num_supernodes, min(num_cpus, num_supernodes)), server_app)
    finally:
        if ours:
            ray.shutdown()
