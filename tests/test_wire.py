"""The wire: what is written is read back after Flower's serialisation, and what is no proper reply is refused."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from flwr.common.serde import recorddict_from_proto, recorddict_to_proto
from hypothesis import given
from hypothesis import strategies as st

from fedham_flwr.core.parameters import Params
from fedham_flwr.core.records import Row
from fedham_flwr.federation import folders, wire
from fedham_flwr.federation.direct import Reply
from fedham_flwr.federation.messages import ClientFailure, Download, Extras, Profile
from fedham_flwr.federation.record_values import tensors, tensors_record
from fedham_flwr.federation.stages import STAGES, Stage

Spoil = Callable[[RecordDict], object]


def sent(content: RecordDict) -> RecordDict:
    """The content as it arrives on another machine."""
    proto = recorddict_to_proto(content)
    return recorddict_from_proto(type(proto).FromString(proto.SerializeToString()))


def tree() -> Params:
    """Values that a detour through text or float64 would change, shapes from scalar to four dimensions, odd names."""
    return {
        "conv1.weight": torch.arange(24, dtype=torch.float32).reshape(2, 3, 2, 2) / 7,
        "a": torch.tensor(1 / 3),
        "head/with spaces.é-0": torch.tensor([1e-45, -0.0, 3.4028235e38, float("inf")]),
        "empty": torch.zeros(0, 3),
        "half": torch.tensor([0.1], dtype=torch.float16),
    }


def same(a: Params, b: Params) -> bool:
    """Names in order, dtypes, shapes and every bit (which tells 0.0 from -0.0)."""
    return list(a) == list(b) and all(
        a[n].dtype == b[n].dtype and a[n].shape == b[n].shape and a[n].numpy().tobytes() == b[n].numpy().tobytes()
        for n in a
    )


METRICS: dict[str, float | int] = {
    "validation/personal/after/accuracy": 0.5,
    "test/global/before/loss": 1 / 3,
    "n/test": 12,
    "n/validation": 4,
    "seconds/train": 0.25,
}


def upload(examples: int = 30) -> RecordDict:
    return wire.write_upload(Reply("site-7", tree(), examples, METRICS))


# ---- round trips -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "download",
    [
        Download(1, tree(), (3, 32, 32), 10),
        Download(7, {}, (1, 8, 8), 2, has_trained=True),
        Download(7, tree(), (80,), 100),
        Download(21, tree(), (1, 28, 28), 62, has_trained=True, closing=True, export="some where/é"),
        Download(3, {}, (1, 8, 8), 2, extras=Extras(tree(), {"place": (7,), "ready": (1, 0), "peers": ()})),
        Download(3, tree(), (1, 8, 8), 2, extras=Extras({}, {"place": (0,)})),
        Download(3, tree(), (1, 8, 8), 2, extras=Extras({"x/w": torch.ones(2)}, {})),
    ],
)
def test_a_download_arrives_as_it_was_sent(download: Download) -> None:
    back = wire.read_download(sent(wire.write_download(download)))
    assert same(back.params, download.params)
    assert (back.round, back.shape, back.classes) == (download.round, download.shape, download.classes)
    assert (back.has_trained, back.closing, back.export) == (download.has_trained, download.closing, download.export)
    assert type(back.has_trained) is type(back.closing) is bool
    assert same(back.extras.tensors, download.extras.tensors)
    assert back.extras.facts == download.extras.facts


def test_an_upload_arrives_as_it_was_sent() -> None:
    back = wire.read_upload(sent(upload()), 5)
    assert same(back.params, tree())
    assert (back.client, back.examples) == ("site-7", 30)
    assert back.seconds == {"train": 0.25}
    assert set(back.rows) == {
        Row(5, "site-7", "validation", "personal", "after", "accuracy", 0.5, 4),
        Row(5, "site-7", "test", "global", "before", "loss", 1 / 3, 12),
    }


def test_scores_of_a_text_arrive_with_their_perplexity_and_are_of_a_member() -> None:
    metrics = {"test/personal/after/perplexity": 7.5, "n/test": 160}
    (row,) = wire.read_upload(sent(wire.write_upload(Reply("0", {}, 1, metrics))), 2).rows
    assert row == Row(2, "0", "test", "personal", "after", "perplexity", 7.5, 160, "member")


@pytest.mark.parametrize("restarted", [True, False])
def test_what_a_method_sends_along_arrives_apart_from_the_model(restarted: bool) -> None:
    row = {"row": torch.tensor([[0.25, 0.75]])}
    back = wire.read_upload(sent(wire.write_upload(Reply("0", tree(), 1, {}, row, restarted))), 2)
    assert same(back.params, tree())
    assert same(back.extras, row)
    assert back.restarted is restarted
    assert wire.read_upload(sent(upload()), 1).extras == {}


def test_a_tensor_that_many_clients_get_is_serialised_once() -> None:
    shared, own = torch.zeros(3), (torch.ones(3), torch.ones(3))
    made: dict[int, Array] = {}
    one, other = (
        wire.write_download(Download(1, {"w": t}, (1, 8, 8), 2, extras=Extras({"0/w": shared})), made) for t in own
    )
    assert len(made) == 3
    assert one.array_records["extras"]["0/w"].data is other.array_records["extras"]["0/w"].data
    assert one.array_records["tensors"]["w"].data is not other.array_records["tensors"]["w"].data


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_is_itself_in_a_process_that_ray_sends_it_to(stage: Stage) -> None:
    """Stages are told apart by identity, and Ray's workers get the apps, which hold them, as bytes."""
    assert copy.copy(stage) is stage  # made anew as from bytes, by `__reduce__`


def test_the_reply_to_an_evaluation_has_rows_and_no_tensors() -> None:
    back = wire.read_upload(sent(wire.write_upload(Reply("0", {}, 1, {"test/global/before/loss": 2, "n/test": 3}))), 2)
    assert back.params == {}
    assert back.rows == (Row(2, "0", "test", "global", "before", "loss", 2.0, 3),)
    assert isinstance(back.rows[0].value, float)


@pytest.mark.parametrize("partitions", [0, 10])
def test_a_profile_arrives_as_it_was_sent(partitions: int) -> None:
    counts = {"train": 60, "validation": 0, "test": 20}
    profile = Profile("site-7", partitions, (3, 32, 32), 3, counts, (20, 0, 40))
    back = wire.read_profile(sent(wire.write_profile(profile)))
    assert back == profile
    assert list(back.counts) == ["train", "validation", "test"]


@pytest.mark.parametrize("simulated", [True, False])
@pytest.mark.parametrize("read", [lambda c: wire.read_upload(c, 1), wire.read_profile])
def test_a_failure_arrives_as_an_exception(simulated: bool, read: Callable[[RecordDict], object]) -> None:
    with pytest.raises(ClientFailure, match=r"^no data at é$") as caught:
        read(sent(wire.write_failure("no data at é", simulated)))
    assert caught.value.simulated is simulated


def test_a_failure_holds_no_tensors() -> None:
    content = wire.write_failure("x", simulated=False)
    assert not content.array_records
    assert not content.metric_records


@given(
    st.dictionaries(st.text(st.characters(exclude_categories=["Cs"]), min_size=1), st.lists(st.floats(width=32))),
)
def test_every_name_and_every_float32_survives(values: dict[str, list[float]]) -> None:
    params = {name: torch.tensor(row, dtype=torch.float32) for name, row in values.items()}
    assert same(tensors(sent(RecordDict({"t": tensors_record(params)})).array_records["t"]), params)


# ---- each client has a record of its own -----------------------------------------------------------------------------


def test_two_clients_never_share_a_record() -> None:
    download = Download(1, tree(), (1, 8, 8), 2)
    first, second = wire.write_download(download), wire.write_download(download)
    first.array_records[wire.TENSORS].clear()
    first.config_records[wire.INSTRUCTIONS]["export"] = "meant for the first"
    first["more"] = ConfigRecord({"x": 1})
    assert list(second) == [wire.TENSORS, wire.INSTRUCTIONS]
    assert same(wire.read_download(second).params, tree())
    assert wire.read_download(second).export == ""


def test_what_is_written_does_not_follow_later_changes() -> None:
    params = {"w": torch.zeros(2)}
    content = wire.write_download(Download(1, params, (1, 8, 8), 2))
    params["w"].fill_(9)
    assert torch.equal(wire.read_download(content).params["w"], torch.zeros(2))


def test_what_is_read_can_be_changed_without_changing_the_record() -> None:
    content = sent(wire.write_download(Download(1, {"w": torch.zeros(2)}, (1, 8, 8), 2)))
    wire.read_download(content).params["w"].fill_(9)
    assert torch.equal(wire.read_download(content).params["w"], torch.zeros(2))


# ---- what is no proper message ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("examples", [0, -1, 2.0, 0.5, float("nan"), float("inf")])
def test_an_example_count_that_is_no_positive_whole_number_is_refused(examples: float) -> None:
    content = upload()
    content.metric_records[wire.REPORT]["examples"] = examples
    with pytest.raises(ValueError, match=rf"the example count is {examples!r}, wanted a positive whole number"):
        wire.read_upload(sent(content), 1)


def test_an_example_count_that_is_a_truth_value_cannot_even_be_sent() -> None:
    with pytest.raises(TypeError, match="bool"):
        upload(examples=True)


def spoiled_report(**changes: float | list[float]) -> Spoil:
    def spoil(content: RecordDict) -> None:
        report = dict(content.metric_records[wire.REPORT])
        report.update({key.replace("__", "/"): value for key, value in changes.items()})
        content[wire.REPORT] = MetricRecord(report)

    return spoil


UPLOADS: list[tuple[Spoil, type[Exception], str]] = [
    (lambda c: c.pop(wire.TENSORS), KeyError, "tensors"),
    (lambda c: c.pop(wire.REPORT), KeyError, "report"),
    (lambda c: c.pop(wire.SENDER), KeyError, "sender"),
    (lambda c: c.update({wire.SENDER: ConfigRecord({})}), KeyError, "client-id"),
    (lambda c: c.update({wire.REPORT: MetricRecord({})}), KeyError, "examples"),
    (spoiled_report(train__personal__after__loss=1.0), KeyError, "train"),  # no n/train
    (spoiled_report(loss=1.0), ValueError, "unpack"),
    (spoiled_report(test__a__b__c__d=1.0), ValueError, "unpack"),
    (spoiled_report(n__test=1.5), TypeError, "1.5 is not a whole number"),
    (spoiled_report(seconds__train=[1.0]), TypeError, r"\[1.0\] is not a number"),
    (spoiled_report(test__global__before__loss=[1.0]), TypeError, r"\[1.0\] is not a number"),
    (RecordDict.clear, KeyError, "sender"),
]


@pytest.mark.parametrize(("spoil", "error", "match"), UPLOADS)
def test_a_malformed_upload_is_refused(spoil: Spoil, error: type[Exception], match: str) -> None:
    content = upload()
    spoil(content)
    with pytest.raises(error, match=match):
        wire.read_upload(sent(content), 1)


def setting(record: str, key: str, value: Any) -> Spoil:
    return lambda content: content.config_records[record].__setitem__(key, value)


PROFILES: list[tuple[Spoil, type[Exception], str]] = [
    (RecordDict.clear, KeyError, "sender"),
    (lambda c: c.config_records[wire.SENDER].pop("labels"), KeyError, "labels"),
    (setting(wire.SENDER, "splits", "train"), TypeError, "splits is 'train', wanted a list"),
    (setting(wire.SENDER, "counts", [1]), ValueError, "zip"),
    (setting(wire.SENDER, "shape", "abc"), TypeError, "'abc' is not a list of whole numbers"),
    (setting(wire.SENDER, "shape", [1.5, 8.0, 8.0]), TypeError, "1.5 is not a whole number"),
    (setting(wire.SENDER, "classes", True), TypeError, "True is not a whole number"),
    (setting(wire.SENDER, "partitions", "3"), TypeError, "'3' is not a whole number"),
]


@pytest.mark.parametrize(("spoil", "error", "match"), PROFILES)
def test_a_malformed_profile_is_refused(spoil: Spoil, error: type[Exception], match: str) -> None:
    content = wire.write_profile(Profile("a", 0, (1, 8, 8), 2, {"train": 1, "test": 1}, (1, 1)))
    spoil(content)
    with pytest.raises(error, match=match):
        wire.read_profile(sent(content))


@pytest.mark.parametrize(
    ("spoil", "error", "match"),
    [
        (lambda c: c.pop(wire.TENSORS), KeyError, "tensors"),
        (lambda c: c.config_records[wire.INSTRUCTIONS].pop("closing"), KeyError, "closing"),
        (setting(wire.INSTRUCTIONS, "round", 1.0), TypeError, "1.0 is not a whole number"),
    ],
)
def test_a_malformed_download_is_refused(spoil: Spoil, error: type[Exception], match: str) -> None:
    content = wire.write_download(Download(1, tree(), (1, 8, 8), 2))
    spoil(content)
    with pytest.raises(error, match=match):
        wire.read_download(sent(content))


def test_flower_takes_an_upload_for_what_it_is() -> None:
    content = sent(upload())
    assert isinstance(content[wire.TENSORS], ArrayRecord)
    assert isinstance(content[wire.REPORT], MetricRecord)
    assert isinstance(content[wire.SENDER], ConfigRecord)


@pytest.mark.parametrize("shape", [(80,), (2, 13)])
def test_the_profile_of_a_text_has_a_shape_of_one_number_and_that_of_a_table_of_two(shape: tuple[int, ...]) -> None:
    profile = Profile("a", 0, shape, 2, {"train": 4, "test": 1}, (300, 20))
    assert wire.read_profile(sent(wire.write_profile(profile))) == profile


@pytest.mark.parametrize(
    "changes",
    [{"shape": (8, 8, 3, 1, 1)}, {"classes": 3}, {"counts": {"train": -1}}, {"partitions": -1}, {"labels": (1, -1)}],
)
def test_a_profile_that_describes_no_data_set_is_refused(changes: dict[str, Any]) -> None:
    whole = {"client": "a", "partitions": 0, "shape": (1, 8, 8), "classes": 2, "counts": {"train": 4}, "labels": (1, 3)}
    assert wire.read_profile(wire.write_profile(Profile(**whole))).classes == 2
    with pytest.raises(ValueError, match="this is not the description of a data set"):
        wire.read_profile(wire.write_profile(Profile(**(whole | changes))))


@pytest.mark.parametrize("direct", [False, True])
def test_the_folders_of_a_message_can_be_others_on_another_machine(direct: bool) -> None:
    content = wire.write_download(Download(1, {}, (2,), 2, keep="/run/clients"), direct=direct)
    assert folders.read(content) == ("/run/clients", "")
    moved = wire.read_download(folders.replace(content, "/tmp/keep", "/tmp/model"))
    assert (moved.keep, moved.export) == ("/tmp/keep", "")


def test_a_message_that_names_no_folders_stays_as_it_is() -> None:
    question = RecordDict()
    assert folders.read(question) == ("", "")
    assert folders.replace(question, "/tmp/keep", "/tmp/model") is question
