"""The messages between server and clients, as values: Start, Download, Upload, Profile and a client's failure."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field

from fedham_flwr.core.parameters import Params
from fedham_flwr.core.records import Row
from fedham_flwr.data.batches import Target

Metrics = Mapping[str, float | int]
"""Scores as a NumPyClient returns them: "test/personal/after/accuracy", "n/test", "seconds/train"."""


@dataclass(frozen=True)
class Extras:
    """What a method sends along with a model, or in its place.

    Attributes:
        tensors: by names of the method's own.
        facts: whole numbers, by names of the method's own.
    """

    tensors: Params = field(default_factory=dict)
    facts: Mapping[str, tuple[int, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class Start:
    """What the server sends one client to start from.

    Attributes:
        params: shared tensors; those that are left out the client takes from what it kept.
        extras: what the method sends along.
        own: the model is this client's own, and not everybody's.
        left_out: the tensors that are left out, as the server last saw them; an update is measured from there.
    """

    params: Params
    extras: Extras = field(default_factory=Extras)
    own: bool = False
    left_out: Params = field(default_factory=dict)


@dataclass(frozen=True)
class Download:
    """What the server sends one client.

    Attributes:
        round: number of the round, from 1; the closing evaluation has the number after the last round.
        params: the shared tensors the client starts from; without those that it starts from its own of.
        shape: of one sample, the same for every client: (channels, height, width) of an image, (T,) of a text.
        classes: number of classes, the same for every client; of labels or values where these are learned.
        has_trained: the server has merged an upload of this client, so its personal state must be there.
        closing: this is the evaluation after the last round.
        export: folder for the client's personal model; empty for none.
        training: name of the training that the round is part of, which a run that continues it keeps: a client finds
            its personal state by it.
        keep: simulation: folder that clients write their personal state through to; empty for none.
        own: the model is this client's own, and not everybody's.
        extras: what the method sends along.
        data: simulation: the `pin` of the data that the run began with; empty for whatever there is.
    """

    round: int
    params: Params
    shape: tuple[int, ...]
    classes: int
    has_trained: bool = False
    closing: bool = False
    export: str = ""
    training: str = ""
    keep: str = ""
    own: bool = False
    extras: Extras = Extras()
    data: str = ""


@dataclass(frozen=True)
class Upload:
    """What a client sends back.

    Attributes:
        client: id that the client gives itself.
        params: its shared tensors after local training; empty after an evaluation.
        examples: its training samples, as many as count in a mean.
        rows: its scores; of those that a method's server half is given none are of the test split.
        seconds: what the client's time went into, by purpose.
        extras: tensors of the method's own.
        restarted: it has trained before, and something that it had learned for itself was lost and started again.
        age: rounds since it made the personal state that it started from; 0 if it started from none.
        uncapped: its training samples where `max-examples-per-client` has shortened `examples`; 0: as many.
    """

    client: str
    params: Params
    examples: int
    rows: tuple[Row, ...]
    seconds: Mapping[str, float] = field(default_factory=dict)
    extras: Params = field(default_factory=dict)
    restarted: bool = False
    age: int = 0
    uncapped: int = 0

    @property
    def samples(self) -> int:
        """Its training samples, by which its local steps are counted."""
        return self.uncapped or self.examples

    def for_method(self) -> Upload:
        """The upload without scores of the test split, from which a method learns nothing."""
        return dataclasses.replace(self, rows=tuple(row for row in self.rows if row.split != "test"))


@dataclass(frozen=True)
class Profile:
    """Who a client is and what data it has; the answer to the query before the first round.

    Attributes:
        client: its id.
        partitions: number of clients of the simulation it is part of, 0 on a real node.
        shape: of one sample: (channels, height, width) of an image, (T,) of a text, any of an array.
        classes: number of classes; of labels or values where these are learned.
        counts: samples of each split.
        labels: how often each class is a target in training: once per sample, or T times in a text; none where there
            are no classes.
        name: of its data, such as the owner's in a natural partitioning.
        meanings: names of the classes, in their order; of a table then its columns, and the digest of its schema.
        target: what is learned: class, multi-label, value or next-token.
        data: simulation: the `pin` of its data; a real node says nothing of that kind.
        network: its network, `auto` resolved; empty if it is the setting `model` that says it.
    """

    client: str
    partitions: int
    shape: tuple[int, ...]
    classes: int
    counts: Mapping[str, int]
    labels: tuple[int, ...]
    name: str = ""
    meanings: tuple[tuple[str, ...], ...] = ()
    target: Target = "class"
    data: str = ""
    network: str = ""


class ClientFailure(Exception):  # noqa: N818  # a reply of the protocol, not a fault of this process
    """A client's own account of why it could not do what it was asked.

    Args:
        error: a sentence.
        simulated: the client is one of a simulation, whose clients all read the same settings.
        lost: it lost what it kept, and could go on if the server sent it everything.
        ends: it is no fault of this client alone, and ends the run.
    """

    def __init__(self, error: str, simulated: bool = False, lost: bool = False, ends: bool = False) -> None:
        super().__init__(error)
        self.simulated, self.lost, self.ends = simulated, lost, ends
