"""What a run tells its clients alike, the exchange on its way, how far the run is, and who is told of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from fedham_flwr.core.records import MixingWeights, RoundRecord, Row
from fedham_flwr.federation.messages import Start
from fedham_flwr.federation.stages import Stage

Plan = Callable[[Sequence[str]], Mapping[str, Start]]
"""What each of these clients starts from; asked again for those that lost their state, and to measure updates."""


@dataclass(frozen=True)
class Task:
    """What all clients of a run are told alike.

    Attributes:
        shape: of one sample: (channels, height, width) of an image, (T,) of a text.
        classes: number of outputs.
        export: folder for the personal models at the end; empty for none.
        training: name of the training, by which clients find what they keep.
        keep: folder in which the clients of a simulation keep it; empty for none.
        data: the `pin` of the data that the clients of a simulation began with; empty if there is none.
    """

    shape: tuple[int, ...]
    classes: int
    export: str = ""
    training: str = ""
    keep: str = ""
    data: str = ""


@dataclass
class RunProgress:
    """How far a run is: what a checkpoint has of it beside the method's state.

    Attributes:
        done: the last round that is behind it.
        trained: clients whose upload has been merged.
        stateless: clients that said that they had lost their state, and have not trained since.
        novel: clients that never train, and adapt after the last round.
    """

    done: int = 0
    trained: set[str] = field(default_factory=set)
    stateless: set[str] = field(default_factory=set)
    novel: tuple[str, ...] = ()


class Sent(NamedTuple):
    """The messages of one exchange on their way: when they were made, for whom, and how many bytes."""

    stage: Stage
    round: int
    began: float
    clients: tuple[str, ...]
    plan: Plan
    closing: bool
    direct: bool = False  # to clients of this process, which are handed the values as they are
    bytes_down: int = 0
    restored: tuple[str, ...] = ()  # those that had lost their state and were asked again


class Recorder(Protocol):
    """What is told of a run's progress."""

    def record(self, record: RoundRecord, rows: Sequence[Row], weights: MixingWeights | None) -> None:
        """Called after every exchange, with what it brought and how the clients' models had been mixed."""

    def round_done(self, last: bool) -> bool:
        """Called when a round is done, and before the first one of a run that goes on; whether it shall be the last."""

    def checkpoint(self) -> None:
        """Called when a round is done that the run could go on from later."""
