"""Downloads, uploads, profiles and failures to and from Flower's RecordDict.

Only this file knows the keys. Every message gets records of its own, since Flower shares a RecordDict by reference.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import get_args

from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict

from fedham_flwr.core.records import Row
from fedham_flwr.data.batches import Target
from fedham_flwr.federation.direct import Direct, Reply
from fedham_flwr.federation.messages import ClientFailure, Download, Extras, Profile, Upload
from fedham_flwr.federation.record_values import arrays, number, tensors, tensors_record, whole_number, whole_numbers

TENSORS, INSTRUCTIONS, REPORT, SENDER, FAILURE = "tensors", "instructions", "report", "sender", "failure"
EXTRAS, FACTS = "extras", "facts"
SECONDS, SAMPLES = "seconds", "n"
NO_SCORES = (f"{SECONDS}/", f"{SAMPLES}/")


def write_download(download: Download, serialised: dict[int, Array] | None = None, direct: bool = False) -> RecordDict:
    """A fresh record for one client.

    Args:
        download: what to send.
        serialised: as for `arrays`, for tensors that many clients get: their bytes are then there once, however many
            messages hold them. The tensors must live as long as this does.
        direct: the client is in this process, and gets the value itself.
    """
    if direct:
        return Direct(download)
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
            "data": download.data,
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
    if isinstance(content, Direct):
        assert isinstance(content.value, Download)
        return content.value
    given = content.config_records[INSTRUCTIONS]
    return Download(
        round=whole_number(given["round"]),
        params=tensors(content.array_records[TENSORS]),
        shape=whole_numbers(given["shape"]),
        classes=whole_number(given["classes"]),
        has_trained=bool(given["has-trained"]),
        closing=bool(given["closing"]),
        export=str(given["export"]),
        training=str(given["training"]),
        keep=str(given["keep"]),
        own=bool(given["own"]),
        data=str(given["data"]),
        extras=_extras(content),
    )


def write_upload(reply: Reply, direct: bool = False) -> RecordDict:
    """A client's reply.

    Args:
        reply: what it says.
        direct: the server is in this process, and gets the value itself.
    """
    if direct:
        return Direct(reply)
    content = RecordDict(
        {
            TENSORS: tensors_record(reply.params),
            REPORT: MetricRecord({"examples": reply.examples, **reply.metrics}),
            SENDER: ConfigRecord({"client-id": reply.client, "restarted": reply.restarted, "age": reply.age}),
        }
    )
    if reply.extras:
        content[EXTRAS] = tensors_record(reply.extras)
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
    reply = _read_reply(content)
    if not isinstance(reply.examples, int) or reply.examples < 1:
        raise ValueError(f"the example count is {reply.examples!r}, wanted a positive whole number")
    seconds, counts, rows = {}, {}, []
    for key, value in reply.metrics.items():
        kind, _, rest = key.partition("/")
        if kind == SECONDS:
            seconds[rest] = number(value)
        elif kind == SAMPLES:
            counts[rest] = whole_number(value)
    for key, value in reply.metrics.items():
        if not key.startswith(NO_SCORES):
            split, model, phase, metric = key.split("/")
            if model not in ("global", "personal") or phase not in ("before", "after"):
                raise ValueError(f"{key!r} is not a score")
            rows.append(Row(round_number, reply.client, split, model, phase, metric, number(value), counts[split]))
    return Upload(
        reply.client, reply.params, reply.examples, tuple(rows), seconds, reply.extras, reply.restarted, reply.age
    )


def _read_reply(content: RecordDict) -> Reply:
    if isinstance(content, Direct):
        assert isinstance(content.value, Reply)
        return content.value
    if FAILURE in content.config_records:
        raise _failure(content.config_records[FAILURE])
    sender = content.config_records[SENDER]
    report = dict(content.metric_records[REPORT])
    return Reply(
        str(sender["client-id"]),
        tensors(content.array_records[TENSORS]),
        report.pop("examples"),  # type: ignore[arg-type]  # `read_upload` looks
        report,  # type: ignore[arg-type]
        _extras(content).tensors,
        bool(sender.get("restarted", False)),
        whole_number(sender.get("age", 0)),
    )


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
            "data": profile.data,
            "network": profile.network,
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
        partitions=whole_number(given["partitions"]),
        shape=whole_numbers(given["shape"]),
        classes=whole_number(given["classes"]),
        counts=dict(zip(map(str, splits), whole_numbers(given["counts"]), strict=True)),
        labels=whole_numbers(given["labels"]),
        name=str(given["name"]),
        meanings=tuple(tuple(map(str, names)) for names in json.loads(str(given["meanings"]))),
        target=_target(given["target"]),
        data=str(given["data"]),
        network=str(given.get("network", "")),
    )
    counted = len(profile.labels) == (profile.classes if profile.target in ("class", "next-token") else 0)
    numbers = (*profile.shape, *profile.counts.values(), *profile.labels, profile.partitions)
    if len(profile.shape) not in (1, 2, 3, 4) or not counted or min(numbers) < 0:
        raise ValueError(f"this is not the description of a data set: {profile}")
    return profile


def write_failure(error: str, simulated: bool, lost: bool = False, ends: bool = False) -> RecordDict:
    """A client's reply when it could not do what it was asked: a sentence, and nothing that could be merged.

    Args:
        error: what went wrong.
        simulated: the client is one of a simulation.
        lost: it lost what it kept and needs everything.
        ends: it ends the run.
    """
    flags = {"simulated": simulated, "lost": lost, "ends": ends}
    return RecordDict({FAILURE: ConfigRecord({"error": error, **flags})})


def says_lost(content: RecordDict) -> bool:
    """Whether a client's reply is that it lost what it kept and needs everything."""
    return FAILURE in content.config_records and bool(content.config_records[FAILURE].get("lost", False))


def _extras(content: RecordDict) -> Extras:
    if EXTRAS not in content.array_records:
        return Extras()
    facts: Mapping[str, object] = content.config_records.get(FACTS, ConfigRecord())
    return Extras(tensors(content.array_records[EXTRAS]), {name: whole_numbers(given) for name, given in facts.items()})


def _failure(given: ConfigRecord) -> ClientFailure:
    flags = (bool(given.get(flag, False)) for flag in ("simulated", "lost", "ends"))
    return ClientFailure(str(given["error"]), *flags)


def _target(value: object) -> Target:
    for target in get_args(Target):
        if value == target:
            return target  # type: ignore[no-any-return]
    raise ValueError(f"{value!r} is no target")
