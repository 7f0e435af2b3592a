"""What a method's answers must be; a user's own method is told which one is not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from fedham_flwr.core.errors import UserError
from fedham_flwr.core.parameters import Params
from fedham_flwr.federation.messages import Start


def starts_of(half: Any, round_number: int, clients: Sequence[str]) -> Mapping[str, Start]:
    """What a method's server half plans, if it is a `Start` for each client.

    Args:
        half: the server half.
        round_number: the round.
        clients: ids, in order.

    Raises:
        UserError: a client has none.
    """
    given: Mapping[str, Start] = half.plan(round_number, clients)
    for client in clients:
        start = given.get(client) if isinstance(given, Mapping) else given
        if not isinstance(start, Start):
            found = "nothing" if start is None else type(start).__name__
            raise UserError(
                f"plan of {type(half).__name__} gives {found} for client {client}, and wanted is Start(shared tensors)"
            )
    return given


def state_of(half: Any) -> Params:
    """What a method's server half has learned, if it is tensors.

    Args:
        half: the server half.

    Raises:
        UserError: something else is in it.
    """
    given: Params = half.state_dict()
    for name, tensor in given.items():
        if not isinstance(tensor, Tensor):
            raise UserError(
                f"state_dict of {type(half).__name__} gives {type(tensor).__name__} for {name}, and wanted is a tensor"
            )
    return given
