"""What crosses the network: Download, Upload and Profile, to and from Flower's RecordDict.

Only this file knows the keys. Every message gets records of its own, since Flower shares a RecordDict by reference.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import get_args

import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict

from fedham_flwr.core.parameters import Params
from fedham_flwr.core.records import Row
from fedham_flwr.data.batches import Target

TENSORS, INSTRUCTIONS, REPORT, SENDER, FAILURE = "tensors", "instructions", "report", "sender", "failure"
EXTRAS, FACTS = "extras", "facts"
SECONDS, SAMPLES = "seconds", "n"

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


@dataclass(frozen=True)
class Upload:
    """What a client sends back.

    Attributes:
        client: id that the client gives itself.
        params: its shared tensors after local training; empty after an evaluation.
        examples: its training samples.
        rows: its scores.
        seconds: what the client's time went into, by purpose.
        extras: tensors of the method's own.
        restarted: it has trained before, and something that it had learned for itself was lost and started again.
        age: rounds since it made the personal state that it started from; 0 if it started from none.
    """

    client: str
    params: Params
    examples: int
    rows: tuple[Row, ...]
    seconds: Mapping[str, float] = field(default_factory=dict)
    extras: Params = field(default_factory=dict)
    restarted: bool = False
    age: int = 0


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
        meanings: names of the classes, in their order; of a table, and then of its columns.
        target: what is learned: class, multi-label, value or next-token.
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


class ClientFailure(Exception):  # noqa: N818  # a reply of the protocol, not a fault of this process
    """A client's own account of why it could not do what it was asked.

    Args:
        error: a sentence.
        simulated: the client is one of a simulation, whose clients all read the same settings.
        lost: it lost what it kept, and could go on if the server sent it everything.
    """

    def __init__(self, error: str, simulated: bool = False, lost: bool = False) -> None:
        super().__init__(error)
        self.simulated = simulated
        self.lost = lost


def arrays(params: Mapping[str, torch.Tensor], serialised: dict[int, Array] | None = None) -> dict[str, Array]:
    """Named tensors, serialised.

    Args:
        params: the tensors.
        serialised: what is there already, by the tensor's identity, and is added to.
    """
    made = {} if serialised is None else serialised
    for tensor in params.values():
        if id(tensor) not in made:
            made[id(tensor)] = Array(tensor.numpy())
    return {name: made[id(tensor)] for name, tensor in params.items()}


def tensors_record(params: Mapping[str, torch.Tensor]) -> ArrayRecord:
    """Named tensors as a record."""
    return ArrayRecord(arrays(params))


def tensors(record: ArrayRecord) -> Params:
    """The inverse of `tensors_record`."""
    return {name: torch.from_numpy(array.numpy()) for name, array in record.items()}


def write_download(download: Download, serialised: dict[int, Array] | None = None) -> RecordDict:
    """A fresh record for one client.

    Args:
        download: what to send.
        serialised: as for `arrays`, for tensors that many clients get: their bytes are then there once, however many
            messages hold them. The tensors must live as long as this does.
    """
    instructions = ConfigRecord(
        {
            "round": download.round,
            "shape": list(download.shape),
            "classes": download.classes,
            "has-trained": download.has_trained,
            "closing": download.closing,
            "export": download.export,
            "training": download.training,
            "keep": download.keep,
            "own": download.own,
        }
    )
    content = RecordDict({TENSORS: ArrayRecord(arrays(download.params, serialised)), INSTRUCTIONS: instructions})
    if download.extras.tensors or download.extras.facts:
        content[EXTRAS] = ArrayRecord(arrays(download.extras.tensors, serialised))
        content[FACTS] = ConfigRecord({name: list(numbers) for name, numbers in download.extras.facts.items()})
    return content


def read_download(content: RecordDict) -> Download:
    """The inverse of `write_download`.

    Raises:
        KeyError: a part is missing.
    """
    given = content.config_records[INSTRUCTIONS]
    return Download(
        round=_int(given["round"]),
        params=tensors(content.array_records[TENSORS]),
        shape=_ints(given["shape"]),
        classes=_int(given["classes"]),
        has_trained=bool(given["has-trained"]),
        closing=bool(given["closing"]),
        export=str(given["export"]),
        training=str(given["training"]),
        keep=str(given["keep"]),
        own=bool(given["own"]),
        extras=_extras(content),
    )


def write_upload(
    client: str,
    params: Mapping[str, torch.Tensor],
    examples: int,
    metrics: Metrics,
    extras: Mapping[str, torch.Tensor] | None = None,
    restarted: bool = False,
    age: int = 0,
) -> RecordDict:
    """A client's reply.

    Args:
        client: the sender's id.
        params: shared tensors; empty after an evaluation.
        examples: training samples of the client.
        metrics: scores, as in `Metrics`.
        extras: as in `Upload`.
        restarted: as in `Upload`.
        age: as in `Upload`.
    """
    content = RecordDict(
        {
            TENSORS: tensors_record(params),
            REPORT: MetricRecord({"examples": examples, **metrics}),
            SENDER: ConfigRecord({"client-id": client, "restarted": restarted, "age": age}),
        }
    )
    if extras:
        content[EXTRAS] = tensors_record(extras)
    return content


def read_upload(content: RecordDict, round_number: int) -> Upload:
    """The inverse of `write_upload`.

    Args:
        content: a client's reply.
        round_number: the round it was asked in.

    Raises:
        ClientFailure: the client reports a failure.
        KeyError, ValueError, TypeError: the reply has not the form of one.
    """
    if FAILURE in content.config_records:
        raise _failure(content.config_records[FAILURE])
    client = str(content.config_records[SENDER]["client-id"])
    restarted = bool(content.config_records[SENDER].get("restarted", False))
    age = _int(content.config_records[SENDER].get("age", 0))
    report = dict(content.metric_records[REPORT])
    examples = report.pop("examples")
    if not isinstance(examples, int) or examples < 1:
        raise ValueError(f"the example count is {examples!r}, wanted a positive whole number")
    seconds, counts, rows = {}, {}, []
    for key, value in report.items():
        kind, _, rest = key.partition("/")
        if kind == SECONDS:
            seconds[rest] = _float(value)
        elif kind == SAMPLES:
            counts[rest] = _int(value)
    for key, value in report.items():
        if not key.startswith((f"{SECONDS}/", f"{SAMPLES}/")):
            split, model, phase, metric = key.split("/")
            if model not in ("global", "personal") or phase not in ("before", "after"):
                raise ValueError(f"{key!r} is not a score")
            rows.append(Row(round_number, client, split, model, phase, metric, _float(value), counts[split]))
    params, extras = tensors(content.array_records[TENSORS]), _extras(content).tensors
    return Upload(client, params, examples, tuple(rows), seconds, extras, restarted, age)


def write_profile(profile: Profile) -> RecordDict:
    """A client's answer to the query."""
    given = ConfigRecord(
        {
            "client-id": profile.client,
            "partitions": profile.partitions,
            "shape": list(profile.shape),
            "classes": profile.classes,
            "splits": list(profile.counts),
            "counts": list(profile.counts.values()),
            "labels": list(profile.labels),
            "name": profile.name,
            "meanings": json.dumps(profile.meanings),
            "target": profile.target,
        }
    )
    return RecordDict({SENDER: given})


def read_profile(content: RecordDict) -> Profile:
    """The inverse of `write_profile`.

    Raises:
        ClientFailure: the client reports a failure.
        KeyError, ValueError, TypeError: the reply has not the form of one.
    """
    if FAILURE in content.config_records:
        raise _failure(content.config_records[FAILURE])
    given = content.config_records[SENDER]
    splits = given["splits"]
    if not isinstance(splits, list):
        raise TypeError(f"splits is {splits!r}, wanted a list")
    profile = Profile(
        client=str(given["client-id"]),
        partitions=_int(given["partitions"]),
        shape=_ints(given["shape"]),
        classes=_int(given["classes"]),
        counts=dict(zip(map(str, splits), _ints(given["counts"]), strict=True)),
        labels=_ints(given["labels"]),
        name=str(given["name"]),
        meanings=tuple(tuple(map(str, names)) for names in json.loads(str(given["meanings"]))),
        target=_target(given["target"]),
    )
    counted = len(profile.labels) == (profile.classes if profile.target in ("class", "next-token") else 0)
    numbers = (*profile.shape, *profile.counts.values(), *profile.labels, profile.partitions)
    if len(profile.shape) not in (1, 2, 3, 4) or not counted or min(numbers) < 0:
        raise ValueError(f"this is not the description of a data set: {profile}")
    return profile


def write_failure(error: str, simulated: bool, lost: bool = False) -> RecordDict:
    """A client's reply when it could not do what it was asked: a sentence, and nothing that could be merged.

    Args:
        error: what went wrong.
        simulated: the client is one of a simulation.
        lost: it lost what it kept and needs everything.
    """
    return RecordDict({FAILURE: ConfigRecord({"error": error, "simulated": simulated, "lost": lost})})


def says_lost(content: RecordDict) -> bool:
    """Whether a client's reply is that it lost what it kept and needs everything."""
    return FAILURE in content.config_records and bool(content.config_records[FAILURE].get("lost", False))


def _extras(content: RecordDict) -> Extras:
    if EXTRAS not in content.array_records:
        return Extras()
    facts: Mapping[str, object] = content.config_records.get(FACTS, ConfigRecord())
    return Extras(tensors(content.array_records[EXTRAS]), {name: _ints(given) for name, given in facts.items()})


def _failure(given: ConfigRecord) -> ClientFailure:
    return ClientFailure(str(given["error"]), bool(given["simulated"]), bool(given.get("lost", False)))


def _target(value: object) -> Target:
    for target in get_args(Target):
        if value == target:
            return target  # type: ignore[no-any-return]
    raise ValueError(f"{value!r} is no target")


def _int(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{value!r} is not a whole number")
    return value


def _float(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{value!r} is not a number")
    return float(value)


def _ints(value: object) -> tuple[int, ...]:
    if not isinstance(value, Sequence) or isinstance(value, str | bytes):
        raise TypeError(f"{value!r} is not a list of whole numbers")
    return tuple(_int(part) for part in value)
