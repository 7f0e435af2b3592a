"""A simulation in this process, in which the clients of a round train as one program.

What a client is told and what it says is what it would be across a network; only, it is not written out as bytes and
read again. `in_process` and Flower's own simulation, which do, are the reference that this is tested against.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any

from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp

from fedham_flwr.core.errors import UnwritableError, cause
from fedham_flwr.runners.in_process import InProcessGrid
from fedham_flwr.runners.told import summed
from fedham_flwr.state.held import MOST_HELD, HeldRecord
from fedham_flwr.training.engine.cohort import run_together


class CohortGrid(InProcessGrid):
    """Nodes of a simulation that do their work together when their replies are pulled.

    Args:
        client_app: the app that every node runs.
        num_supernodes: number of nodes.
        node_ids: their ids; random by default.
        node_configs: added to each node's config.
    """

    def __init__(
        self,
        client_app: ClientApp,
        num_supernodes: int,
        node_ids: Sequence[int] | None = None,
        node_configs: Sequence[Mapping[str, bool | int | float | str]] | None = None,
    ) -> None:
        self._shared: dict[str, Any] = {}
        super().__init__(client_app, num_supernodes, node_ids, node_configs)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """The replies to messages pushed before; each is given once."""
        messages = [self._waiting.pop(i) for i in message_ids if i in self._waiting]
        return run_together([partial(self._answer, message) for message in messages])

    def write_states(self) -> None:
        """Write what the clients keep to their files, where it has changed.

        Raises:
            UserError: a file cannot be written.
        """
        for context in self.contexts.values():
            assert isinstance(context.state, HeldRecord)
            try:
                context.state.write()
            except OSError as error:
                raise UnwritableError(
                    f"the personal state of client {context.state.label.client} cannot be written: {cause(error)}"
                ) from error
        if self._shared.get("held-bytes", 0) > MOST_HELD:
            for context in self.contexts.values():
                context.state.release()  # type: ignore[attr-defined]

    def drop_states(self) -> bool:
        """Forget what the clients keep, if that is much and somebody else has it; whether that was done."""
        if self._shared.get("held-bytes", 0) <= MOST_HELD:
            return False
        for context in self.contexts.values():
            context.state.drop()  # type: ignore[attr-defined]
        return True

    def engine(self) -> dict[str, object]:
        """How the clients' requests have been carried out, by the engines of all networks; nothing before the first."""
        return summed([engine.told() for engine in self._shared.get("engines", {}).values()])

    def plan(self) -> str:
        """What trains the clients, in a line."""
        return "one process"

    def _state(self) -> RecordDict:
        return HeldRecord(self._shared)

    def _carry(self, message: Message) -> Message:
        return message

    def _lend(self, context: Context) -> Context:
        return context
