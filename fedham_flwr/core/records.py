"""What an exchange with the clients leaves: rows of metrics, failures, its record, and the mixing weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from torch import Tensor

Phase = Literal["before", "after"]
"""Of a client's model in a round: before local training, or after it."""
MEMBER, NOVEL = "member", "novel"
"""Populations: the clients of the federation, and those that never trained in it."""


class Row(NamedTuple):
    """One number of one client in one round, with the `n` samples behind it."""

    round: int  # of the server, from 1
    client: str
    split: str  # train | validation | test
    model: str  # global | personal
    phase: str  # before | after local training
    metric: str  # by name, as `training.metrics` lists them; loss is the mean per sample
    value: float
    n: int  # images, or characters of texts
    population: str = MEMBER  # member | novel; before and after an adaptation, for a novel client


class Failure(NamedTuple):
    """One client that gave no usable reply; `error` is the first line of what it said."""

    round: int
    stage: str
    client: str
    error: str


@dataclass(frozen=True)
class RoundRecord:
    """One exchange with the clients: a line of `rounds.jsonl`."""

    round: int  # of the server, from 1
    # train | evaluate | query, which a method may ask before either | personal, a stage of each client's own | of novel
    # clients: novel, when they come, adapt, and adapted, for turns and what came of them
    kind: str
    cohort: tuple[str, ...]  # the clients that were asked
    replies: int  # usable ones
    failures: tuple[Failure, ...]
    seconds: Mapping[str, float]  # of each part of the exchange
    bytes_up: int  # from the clients
    bytes_down: int  # to the clients
    restored: tuple[str, ...] = ()  # clients that had lost their state, and were sent everything
    restarted: tuple[str, ...] = ()  # clients that had learned something that started again, since they lost it
    clipped: tuple[str, ...] = ()  # clients whose update was longer than clip-norm
    # clients whose personal state was not of the round before: how many rounds old it was
    ages: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class MixingWeights:
    """How the models of n clients are mixed from those of N peers in L layer groups.

    Attributes:
        clients: ids, n of them.
        groups: layer groups, L of them.
        peers: ids, N of them.
        weights: float [n, L, N]; each row sums to 1. With `places` [n, L, K], those that are not 0.
        places: int64 [n, L, K], which peers the weights are of, none twice in a row (one of weight 0 may be). None: all
            peers, in order.

    Raises:
        ValueError: the weights have another shape, or a place is none of a peer.
    """

    clients: tuple[str, ...]
    groups: tuple[str, ...]
    peers: tuple[str, ...]
    weights: Tensor
    places: Tensor | None = None

    def __post_init__(self) -> None:
        given, wanted = tuple(self.weights.shape), (len(self.clients), len(self.groups), len(self.peers))
        if self.places is None:
            if given != wanted:
                raise ValueError(f"weights have shape {given}, wanted clients, groups, peers = {wanted}")
            return
        if tuple(self.places.shape) != given or given[:2] != wanted[:2]:
            raise ValueError(
                f"weights and places have shapes {given}, {tuple(self.places.shape)}, wanted both clients, groups, "
                f"weights of each = {wanted[:2]} and the last"
            )
        if self.places.numel() and not 0 <= int(self.places.min()) <= int(self.places.max()) < len(self.peers):
            raise ValueError(f"places are from 0 to {len(self.peers) - 1}, and one is not")

    def dense(self) -> Tensor:
        """The weights of all peers: [n, L, N]."""
        if self.places is None:
            return self.weights
        whole = self.weights.new_zeros(*self.weights.shape[:2], len(self.peers))
        return whole.scatter_add_(2, self.places, self.weights)


def check_rows(rows: Sequence[Row], number: int) -> None:
    """Refuse rows of another round, and two values for one thing, which would count a client twice."""
    seen = set()
    for row in rows:
        if row.round != number:
            raise ValueError(f"a row of round {row.round} was given with round {number}: {row}")
        if row[:6] in seen:
            raise ValueError(f"client {row.client!r} has two values for {' '.join(row[2:6])} in round {row.round}")
        seen.add(row[:6])
