"""A cohort over several processes or machines: Ray actors of ours, each with an engine.

A shard of a cohort is one message, however many clients it has. What a client keeps stays with the actor that trained
it last, and the latest of it is in Ray's object store too (`kept`): a client that another actor trains goes on from
there, as does one whose actor died. An actor that dies is started again and does its shard once more; if it dies
again, the clients of its shard fail in that exchange. Where there is no room for it any more, others do its work.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from flwr.app import Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.constant import ErrorCode
from flwr.serverapp import ServerApp

from fedham_flwr.core.errors import UnwritableError, UserError, described
from fedham_flwr.federation import folders, wire
from fedham_flwr.runners import actors, placing
from fedham_flwr.runners.actors import WorkerDiedError
from fedham_flwr.runners.clusters import cluster
from fedham_flwr.runners.in_process import InProcessGrid, run_on
from fedham_flwr.runners.kept import Kept
from fedham_flwr.runners.packing import unwrap, wrap
from fedham_flwr.runners.placing import Workers
from fedham_flwr.runners.told import summed
from fedham_flwr.settings import Value, parse

log = logging.getLogger("fedham_flwr")

STARTING, RESTARTING = 300.0, 60.0
"""Seconds within which actors must be there, at the start and later."""
DIED = "the worker that trained this client died"


class ShardedGrid(InProcessGrid):
    """Nodes of a simulation whose work is done by several actors.

    Args:
        given: settings by key.
        num_supernodes: number of nodes.
        workers: the actors.
    """

    def __init__(self, given: Mapping[str, Value] | None, num_supernodes: int, workers: Workers) -> None:
        super().__init__(ClientApp(), num_supernodes)
        self._given, self._ids, self._workers = given, list(self.contexts), workers
        self._owner = dict(zip(self._ids, placing.owners(num_supernodes, workers.count), strict=True))
        self._samples: dict[int, int] = {}  # of each node's training split, once it has said so
        self._kept = Kept()
        self._late: list[list[Any]] = [[] for _ in range(workers.count)]  # what was not there in time
        self._actors = [self._start() for _ in range(workers.count)]
        self._away = [hello.away for hello in self._greet(self._actors, STARTING)]

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """The replies to messages pushed before; each is given once."""
        return self._exchange([self._waiting.pop(i) for i in message_ids if i in self._waiting], None)

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Push messages and pull their replies.

        Args:
            messages: to send.
            timeout: seconds after which shards that are not done are waited for no longer.
        """
        return self._exchange([self._waiting.pop(i) for i in self.push_messages(messages)], timeout)

    def write_states(self) -> None:
        """As `CohortGrid.write_states`."""
        self._kept.write(self._get)

    def engine(self) -> dict[str, object]:
        """As `CohortGrid.engine`, summed up over the actors."""
        told: list[Mapping[str, Any]] = []
        for reference in [actor.engine.remote() for actor in self._actors if actor is not None]:
            with contextlib.suppress(WorkerDiedError):
                told.append(self._get(reference))
        return {**summed(told), "workers": sum(actor is not None for actor in self._actors)}

    def plan(self) -> str:
        """As `CohortGrid.plan`."""
        return self._workers.told()

    # ---- an exchange -----------------------------------------------------------------------------------------------

    def _exchange(self, messages: Sequence[Message], timeout: float | None) -> list[Message]:
        end = None if timeout is None else time.monotonic() + timeout
        shards = self._deal(messages)
        asked = {number: self._ask(number, shard) for number, shard in shards.items()}
        replies: list[Message] = []
        for number, references in asked.items():
            try:
                contents = self._answers(number, shards[number], references, end)
            except TimeoutError:
                log.warning("a worker is not done with its %d clients within round-timeout", len(shards[number]))
                self._late[number].append(references)
                continue
            replies += [Message(c, reply_to=m) for c, m in zip(contents, shards[number], strict=True)]
        return replies

    def _deal(self, messages: Sequence[Message]) -> dict[int, list[Message]]:
        """The messages for each actor that has any; those of an actor that is gone for good are dealt to the others."""
        there = [number for number, actor in enumerate(self._actors) if actor is not None]
        nodes = [message.metadata.dst_node_id for message in messages]
        costs = [1.0 + self._samples.get(node, 0) for node in nodes]
        owned = [self._owner[node] for node in nodes]
        places = [there.index(owner) if owner in there else owner % len(there) for owner in owned]
        shards: dict[int, list[Message]] = {}
        for message, place in zip(messages, placing.shares(costs, places, len(there)), strict=True):
            shards.setdefault(there[place], []).append(message)
        return shards

    def _ask(self, number: int, messages: Sequence[Message]) -> Any:
        """Have an actor do its shard; references to the three parts of what it gives."""
        nodes = [message.metadata.dst_node_id for message in messages]
        heads = [(m.metadata.dst_node_id, m.metadata.message_type, m.metadata.group_id) for m in messages]
        self._kept.folders(folders.read(messages[0].content))
        files, wanted, states = self._kept.bring(nodes, number, self._away[number])
        work = self._actors[number].work.options(num_returns=3)
        return work.remote(heads, wrap([message.content for message in messages]), files, wanted, *states)

    def _answers(
        self, number: int, messages: Sequence[Message], references: Any, end: float | None
    ) -> Sequence[RecordDict | Error]:
        """What became of a shard; once more if its actor died.

        Raises:
            TimeoutError: it is not done in time.
        """
        for again in (True, False):
            replies, kept, files = references
            try:
                contents = unwrap(self._get(replies, end))
                while self._late[number]:  # done before this, since an actor does one thing after the other
                    self._take(number, *self._late[number].pop(0)[1:])
                self._take(number, kept, files)
            except WorkerDiedError as error:
                log.warning("a worker of the cohort died, and is started again: %s", error)
                self._kept.died(number, self._get)
                self._late[number].clear()
                number = self._replace(number)
                references = self._ask(number, messages) if again else None
            except (TimeoutError, UnwritableError):
                raise
            except Exception as error:  # of this project, or of a user's module as the worker imports it
                log.exception("a worker failed")
                failure = wire.write_failure(f"its worker failed: {described(error)}", simulated=True)
                return [failure] * len(messages)
            else:
                self._note(messages, contents)
                return contents
        return [Error(ErrorCode.CLIENT_APP_CRASHED, DIED)] * len(messages)

    def _replace(self, number: int) -> int:
        """Start an actor again, or let another one do its work: which.

        Raises:
            UserError: there is no other.
        """
        actor = self._start()
        try:
            self._away[number] = self._greet([actor], RESTARTING)[0].away
            self._actors[number] = actor
        except UserError as error:
            log.warning("the others train its clients from now on: %s", error)
            self._actors[number] = None
            number = next((n for n, other in enumerate(self._actors) if other is not None), -1)
            if number < 0:
                raise
        return number

    def _take(self, number: int, kept: Any, files: Any) -> None:
        """Take what an actor handed over beside its replies."""
        self._kept.take(number, kept, self._get(kept), self._get(files))

    def _note(self, messages: Sequence[Message], contents: Sequence[RecordDict]) -> None:
        """Who each client is and how much data it has, as it says in answer to the roster's query."""
        for message, content in zip(messages, contents, strict=True):
            if message.metadata.message_type == "query":
                with contextlib.suppress(Exception):  # whoever asked for the profile says what is wrong with it
                    profile, node = wire.read_profile(content), message.metadata.dst_node_id
                    self._samples[node], self._kept.names[node] = profile.counts["train"], profile.client

    # ---- Ray -------------------------------------------------------------------------------------------------------

    def _get(self, reference: Any, end: float | None = None) -> Any:
        """As `actors.get`."""
        return actors.get(reference, end)

    def _start(self) -> Any:
        return actors.start(self._given, self._ids, self._workers)

    def _greet(self, some: Sequence[Any], within: float) -> list[Any]:
        """Wait until actors are there, and hear who they are.

        Raises:
            UserError: one is not there in time.
        """
        end = time.monotonic() + within
        try:
            return [self._get(reference, end) for reference in [actor.hello.remote() for actor in some]]
        except TimeoutError:
            raise UserError(
                f"a worker was not there within {within:g} seconds (wanted: {self._workers.told()}): is it busy?"
            ) from None
        except WorkerDiedError as error:
            raise UserError(f"a worker cannot be started: {error}") from error


def run_sharded(
    server_app: ServerApp,
    given: Mapping[str, Value],
    num_supernodes: int,
    num_cpus: int = 1,
    num_workers: int = 0,
    address: str = "",
) -> None:
    """Run a federation to the end, the clients in actors.

    Args:
        server_app: the server's app.
        given: settings by key.
        num_supernodes: number of clients.
        num_cpus: processors of an actor.
        num_workers: number of actors; 0 for as many as fit.
        address: of a Ray cluster; empty for that of `RAY_ADDRESS`, or one of this machine.

    Raises:
        UserError: as the server's app raises it, or the actors do not fit.
    """
    with cluster(address) as nodes:
        workers = placing.plan(nodes, num_supernodes, parse(given).device, num_cpus, num_workers)
        run_on(ShardedGrid(given, num_supernodes, workers), server_app)
