"""A Grid that runs the same apps in this process, one client after the other: for tests, notebooks and debugging.

Every message and every context goes through Flower's serialisation, so what works here works across a network. Torch
runs in one thread, as in a Ray worker with one CPU, so the results are those of a simulation, bit for bit.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Iterable, Mapping, Sequence

from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.constant import ErrorCode
from flwr.common.serde import context_from_proto, context_to_proto, message_from_proto, message_to_proto
from flwr.serverapp import Grid, ServerApp
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

from fedham_flwr.core.interrupts import raise_if_seen
from fedham_flwr.core.threads import one_thread

log = logging.getLogger("fedham_flwr")

SERVER_NODE = 1


class InProcessGrid(Grid):
    """Nodes of a simulation, each with a context of its own, that answer when their reply is pulled.

    Args:
        client_app: the app that every node runs.
        num_supernodes: number of nodes.
        node_ids: their ids; random by default, as Flower's are.
        node_configs: added to each node's config, which holds its partition-id and num-partitions.
    """

    def __init__(
        self,
        client_app: ClientApp,
        num_supernodes: int,
        node_ids: Sequence[int] | None = None,
        node_configs: Sequence[Mapping[str, bool | int | float | str]] | None = None,
    ) -> None:
        self._client_app = client_app
        self._run = Run.create_empty(run_id=secrets.randbits(63))
        ids = node_ids or [secrets.randbits(63) for _ in range(num_supernodes)]
        extra = node_configs or [{}] * num_supernodes
        self.contexts = {
            node: Context(
                run_id=self._run.run_id,
                node_id=node,
                node_config={"partition-id": i, "num-partitions": num_supernodes, **extra[i]},
                state=self._state(),
                run_config={},
            )
            for i, node in enumerate(ids)
        }
        self._waiting: dict[str, Message] = {}
        TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = self._run.run_id, SERVER_NODE, 1

    @property
    def run(self) -> Run:
        """The run that the messages belong to."""
        return self._run

    def set_run(self, run: Run) -> None:
        """Make the messages belong to another run."""
        self._run = run

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        """A message to a node."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> Iterable[int]:
        """The nodes, in no particular order."""
        return list(self.contexts)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Take messages; a node does its work when its reply is pulled."""
        ids = []
        for message in messages:
            message.metadata.__dict__["_message_id"] = secrets.token_hex(16)  # as Flower's own in-memory grid does
            ids.append(message.metadata.message_id)
            self._waiting[ids[-1]] = message
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """The replies to messages pushed before; each is given once."""
        return [self._answer(self._waiting.pop(i)) for i in message_ids if i in self._waiting]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Push messages and pull their replies; `timeout` does not apply, since nothing is waited for."""
        return self.pull_messages(self.push_messages(messages))

    def _answer(self, message: Message) -> Message:
        node = message.metadata.dst_node_id
        received = self._carry(message)
        context = self._lend(self.contexts[node])
        try:
            reply = self._client_app(received, context)
        except Exception as error:
            raise_if_seen()
            stage, config = message.metadata.message_type, context.node_config
            client = config.get("client-id", config.get("partition-id"))
            log.exception("%s failed at client %s", stage, client)
            reason = f"{stage} failed at client {client}: {type(error).__name__}: {error}"
            return Message(Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, reason), reply_to=message)
        self.contexts[node] = self._lend(context)
        reply.metadata.__dict__["_message_id"] = secrets.token_hex(16)
        return self._carry(reply)

    def _state(self) -> RecordDict:
        """What a node's context begins with."""
        return RecordDict()

    def _carry(self, message: Message) -> Message:
        """A message as it arrives."""
        return message_from_proto(message_to_proto(message))

    def _lend(self, context: Context) -> Context:
        """A node's context as its app gets it, or leaves it."""
        return context_from_proto(context_to_proto(context))


def run_on(grid: Grid, server_app: ServerApp) -> None:
    """Run a server's app to the end in this process, in one thread.

    Args:
        grid: the way to its clients.
        server_app: the app.
    """
    context = Context(run_id=grid.run.run_id, node_id=SERVER_NODE, node_config={}, state=RecordDict(), run_config={})
    with one_thread():
        server_app(grid, context)
