"""What a client remembers of earlier rounds, and what it does when that is lost."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from functools import cached_property

from torch import Tensor

from fedham_flwr.core.errors import UserError
from fedham_flwr.core.parameters import Params
from fedham_flwr.state.store import ClientState, StateLostError, StateNotFoundError

log = logging.getLogger("fedham_flwr")


class Memory:
    """A client's personal state as its method uses it.

    Args:
        state: where it is kept.
        client: the client's id.
        has_trained: the server has merged an upload of this client.
        lost_state: the setting: refuse, or restart.

    Attributes:
        restarted: the client has trained before, and what it had learned for itself was lost and starts again.
    """

    def __init__(self, state: ClientState, client: str, has_trained: bool, lost_state: str) -> None:
        self._state, self._client, self._has_trained, self._lost_state = state, client, has_trained, lost_state
        self.restarted = False

    @cached_property
    def tensors(self) -> Params:
        """All that was kept; nothing before the first round."""
        try:
            return self._state.load()
        except StateNotFoundError:
            return {}

    @property
    def must_be_there(self) -> bool:
        """Whether this client must have kept something, so that it is lost if nothing is there."""
        return self._has_trained or self._state.was_set_aside()

    def recall(
        self,
        names: Sequence[str],
        first: Mapping[str, Tensor],
        shared: Collection[str] = (),
        statistics: Collection[str] = (),
    ) -> Params:
        """Tensors that were kept, or the first ones of a client that has never trained.

        Args:
            names: of the tensors.
            first: what a client starts with.
            shared: tensors that the server has too.
            statistics: running statistics, which start again without harm, since training mends them.

        Raises:
            UserError: what a client that has trained had learned for itself is lost, and `lost-state` is refuse.
            StateLostError: shared tensors are lost; the server sends them when it hears of it.
        """
        if not names:
            return {}
        kept: Params = {}
        error = None
        try:
            kept = self._state.load()
        except StateNotFoundError as missing:
            error = missing
        if lost := [name for name in names if name not in kept]:
            error = error or StateNotFoundError(f"client {self._client} has not kept {', '.join(lost)}")
            if self.must_be_there:
                self._lose(lost, error, set(shared), set(statistics))
            kept = {**kept, **{name: first[name] for name in lost}}
        return {name: kept[name] for name in names}

    def _lose(self, names: Sequence[str], error: StateNotFoundError, shared: set[str], statistics: set[str]) -> None:
        """Refuse to go on without these tensors, or say that they start again."""
        lost = f"{error}, though it has trained in this training"
        if shared & set(names):
            raise StateLostError(lost) from error
        if set(names) <= statistics:
            log.warning("%s: its running statistics start again", lost)
        elif self._lost_state == "refuse":
            raise UserError(f"{lost}: what it had learned is lost ({_few(names)}); {error.ways}") from error
        else:
            few = _few(names)
            log.warning("%s: what it had learned is lost (%s), and it starts again from the first tensors", lost, few)
        self.restarted = True


def _few(names: Sequence[str]) -> str:
    rest = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + rest
