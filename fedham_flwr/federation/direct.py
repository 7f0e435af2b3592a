"""Handing values on as they are, where server and clients are in one process: no bytes are written and read again.

Tensors are then shared, so nobody changes one that was received or sent.
"""

from __future__ import annotations

import logging
from typing import NamedTuple, Protocol, runtime_checkable

from flwr.app import RecordDict
from flwr.serverapp import Grid

from fedham_flwr.core.errors import UserError
from fedham_flwr.core.parameters import Params
from fedham_flwr.federation.messages import Download, Metrics

log = logging.getLogger("fedham_flwr")
NO_TENSORS: Params = {}


class Reply(NamedTuple):
    """What a client says: an `Upload` whose scores are as a NumPyClient returns them.

    Attributes:
        client: the sender's id.
        params: shared tensors; empty after an evaluation.
        examples: training samples of the client.
        metrics: scores, as in `Metrics`.
        extras: as in `Upload`.
        restarted: as in `Upload`.
        age: as in `Upload`.
    """

    client: str
    params: Params
    examples: int
    metrics: Metrics
    extras: Params = NO_TENSORS
    restarted: bool = False
    age: int = 0


class Direct(RecordDict):
    """The content of a message that stays in this process.

    Args:
        value: what it says.
    """

    def __init__(self, value: Download | Reply) -> None:
        super().__init__()
        self.value = value


@runtime_checkable
class HandsOver(Protocol):
    """A grid whose clients are in this process."""

    def write_states(self) -> None:
        """Write what the clients keep to their files, where it has changed.

        Raises:
            UserError: a file cannot be written.
        """

    def plan(self) -> str:
        """What trains the clients, in a line."""

    def engine(self) -> dict[str, object]:
        """How the clients' requests have been carried out, for the results."""


def states_written(grid: Grid, done: int) -> bool:
    """Whether what the clients keep is in their files, which a checkpoint is made of; if it cannot be, that is said.

    Args:
        grid: the way to the clients; those of other processes write their files themselves.
        done: the round.
    """
    try:
        if isinstance(grid, HandsOver):
            grid.write_states()
    except UserError as error:
        log.warning("the checkpoint of round %d is left out: %s", done, error)
        return False
    return True
