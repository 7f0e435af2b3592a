"""What a reply may say, and how far an update may go."""

from __future__ import annotations

import importlib
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from faults import tampered, with_examples, with_tensors
from flwr.app import Array, ArrayRecord, Message, MetricRecord
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from fedham_flwr import registry
from fedham_flwr.core.errors import UserError
from fedham_flwr.core.parameters import Params
from fedham_flwr.core.records import Row
from fedham_flwr.federation import bounds, exchange
from fedham_flwr.federation.messages import Upload
from fedham_flwr.federation.record_values import tensors as read_tensors
from fedham_flwr.registry import BUILT_IN
from fedham_flwr.settings import Value, methods, parse

Federate = Callable[..., Any]
FEW: dict[str, Value] = {"samples_per_client": 64, "checkpoint_every": 0}


def upload(metric: str = "accuracy", value: float = 0.5, n: int = 10, examples: int = 5, **given: Any) -> Upload:
    return Upload("a", {}, examples, (Row(1, "a", "test", "personal", "after", metric, value, n),), **given)


# ---- what is said ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("metric", "value"),
    [("accuracy", 0.0), ("accuracy", 1.0), ("accuracy", 1 + 5e-7), ("loss", 0.0), ("loss", -5e-7), ("loss", 1e30),
     ("perplexity", 1.0), ("perplexity", 1 - 5e-7), ("perplexity", 1e300), ("margin", -3.0)],
)  # fmt: skip
def test_scores_that_can_be_are_taken(metric: str, value: float) -> None:
    bounds.check_report(upload(metric, value))


@pytest.mark.parametrize(
    ("metric", "value", "message"),
    [
        ("accuracy", 1.1, "the score accuracy on test is 1.1, wanted 0 to 1"),
        ("accuracy", -0.1, "the score accuracy on test is -0.1, wanted 0 to 1"),
        ("loss", -0.1, "the score loss on test is -0.1, wanted at least 0"),
        ("perplexity", 0.9, "the score perplexity on test is 0.9, wanted at least 1"),
        ("loss", math.nan, "the score loss on test is nan"),
        ("margin", math.inf, "the score margin on test is inf"),
    ],
)
def test_scores_that_cannot_be_are_refused(metric: str, value: float, message: str) -> None:
    with pytest.raises(ValueError, match=rf"^{message}$"):
        bounds.check_report(upload(metric, value))


@pytest.mark.parametrize("count", [2**53 + 1, 2**62])
def test_counts_that_no_data_set_has_are_refused(count: int) -> None:
    with pytest.raises(ValueError, match=rf"^the example count is {count}, wanted at most 9007199254740992$"):
        bounds.check_report(upload(examples=count))
    with pytest.raises(ValueError, match=rf"^the sample count of test is {count}, wanted 1 to 9007199254740992$"):
        bounds.check_report(upload(n=count))
    bounds.check_report(upload(examples=2**53, n=2**53))


@pytest.mark.parametrize("count", [0, -3])
def test_a_score_over_no_samples_is_refused(count: int) -> None:
    with pytest.raises(ValueError, match=rf"^the sample count of test is {count}, wanted 1 to 9007199254740992$"):
        bounds.check_report(upload(n=count))


@pytest.mark.parametrize("seconds", [math.inf, math.nan, -1.0])
def test_times_that_cannot_be_are_refused(seconds: float) -> None:
    with pytest.raises(ValueError, match=rf"^the seconds of train are {seconds}, wanted a time$"):
        bounds.check_report(upload(seconds={"train": seconds}))


def test_counts_are_capped_and_nothing_else_changes() -> None:
    one = upload(examples=50)
    assert bounds.capped(one, 0) is one
    assert bounds.capped(one, 20) == upload(examples=20, uncapped=50)
    assert [each.samples for each in (one, bounds.capped(one, 20))] == [50, 50]
    assert bounds.capped(one, 50) == bounds.capped(one, 60) == one


# ---- what is sent ------------------------------------------------------------------------------------------------


def test_a_model_is_refused_from_where_arithmetic_would_break() -> None:
    bounds.check_size({"a": torch.full((4,), 4.9e7)})  # of length 9.8e7
    bounds.check_size({})
    for value, norm in ((5.1e7, "1e+08"), (1e30, "inf"), (3e38, "inf"), (-3e38, "inf")):
        message = f"the norm of the model is {norm}, most of it in a: wanted at most 1e+08; where training div".replace(
            "+", r"\+"
        )
        with pytest.raises(ValueError, match=rf"^{message}"):
            bounds.check_size({"b": torch.ones(3), "a": torch.full((4,), value)})


def test_a_negative_variance_is_refused() -> None:
    bounds.check_size({"bn.running_var": torch.zeros(3), "bn.running_mean": -torch.ones(3)})
    with pytest.raises(ValueError, match=r"^bn\.running_var holds a negative variance$"):
        bounds.check_size({"bn.running_var": torch.tensor([1.0, -1e-9])})


def naive(params: Params, reference: Params, most: float) -> dict[str, list[float]]:
    """The clipped params number by number, in Python's float64, not rounded to float32."""
    pairs = {n: list(zip(params[n].flatten().tolist(), reference[n].flatten().tolist(), strict=True)) for n in params}
    length = math.sqrt(math.fsum((x - r) ** 2 for both in pairs.values() for x, r in both))
    scale = min(1.0, most / length) if length else 1.0
    return {n: [r + scale * (x - r) for x, r in both] for n, both in pairs.items()}


sizes = st.floats(-30, 38)
values = st.lists(st.floats(-1, 1, width=32), min_size=4, max_size=4)


@given(values, values, sizes, sizes, st.floats(-30, 30))
def test_clipping_is_what_its_formula_says(
    x: list[float], r: list[float], x_size: float, r_size: float, log_most: float
) -> None:
    most = 10.0**log_most
    params = {"a": torch.tensor(x[:3]) * 10**x_size, "b": torch.tensor([x[3:]]) * 10**x_size}
    reference = {"a": torch.tensor(r[:3]) * 10**r_size, "b": torch.tensor([r[3:]]) * 10**r_size}
    found = bounds.clip(params, reference, most)
    wanted = naive(params, reference, most)
    before, after = (bounds.length(one, reference) for one in (params, found))
    norm = math.sqrt(math.fsum(float(t.double().square().sum()) for t in found.values()))
    rounding = 2.0**-24 * norm + 4 * 2.0**-150
    if before <= most:
        assert found is params
    assert after <= min(before, most * (1 + 1e-12)) + rounding  # never longer, and the bound holds
    for name, tensor in found.items():
        assert tensor.dtype == torch.float32
        assert tensor.shape == params[name].shape
        assert bool(torch.isfinite(tensor).all())
        starts = reference[name].flatten().tolist()
        for one, other, start in zip(tensor.flatten().tolist(), wanted[name], starts, strict=True):
            assert abs(one - other) <= 2.0**-24 * abs(other) * (1 + 1e-9) + 2.0**-149 + 2.0**-50 * abs(start)


@given(values, st.floats(1e-3, 1e3))
def test_clipping_keeps_the_direction(x: list[float], most: float) -> None:
    params, reference = {"a": torch.tensor(x) * 1e4}, {"a": torch.zeros(4), "other": torch.ones(2)}
    found = bounds.clip(params, reference, most)["a"].double()
    update = params["a"].double()
    assert float(found @ update) == pytest.approx(float(found.norm() * update.norm()), rel=1e-6)


def test_clipping_by_hand() -> None:
    # From (1, 1) to (4, 5) is 5 long; with 2.5, half of the way is left.
    start = {"a": torch.ones(1), "b": torch.ones(1)}
    found = bounds.clip({"a": torch.tensor([4.0]), "b": torch.tensor([5.0])}, start, 2.5)
    assert found == {"a": torch.tensor([2.5]), "b": torch.tensor([3.0])}


def test_clipping_does_not_depend_on_the_number_of_threads() -> None:
    draw = torch.Generator().manual_seed(0)
    params, start = ({"a": torch.randn(1_000_003, generator=draw)} for _ in range(2))
    lengths = []
    for threads in (1, 2, 4):
        torch.set_num_threads(threads)
        lengths.append(bounds.length(params, start))
        assert torch.get_num_threads() == threads
    assert lengths[0] == lengths[1] == lengths[2]


# ---- whole rounds ------------------------------------------------------------------------------------------------


def with_report(**given: float) -> Callable[[Message, Message], None]:
    def tamper(_message: Message, reply: Message) -> None:
        changed = {key.replace("__", "/"): value for key, value in given.items()}
        reply.content["report"] = MetricRecord({**reply.content.metric_records["report"], **changed})

    return tamper


def with_bytes(data: bytes) -> Callable[[Message, Message], None]:
    def tamper(_message: Message, reply: Message) -> None:
        arrays = dict(reply.content.array_records["tensors"])
        arrays["fc2.bias"] = Array("float32", (10,), "numpy.ndarray", data)
        reply.content["tensors"] = ArrayRecord(arrays)

    return tamper


HUGE = b"\x93NUMPY\x01\x00v\x00" + b"{'descr': '<f4', 'fortran_order': False, 'shape': (10000000000000,), }".ljust(118)


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (with_tensors(lambda t: t["fc2.bias"].fill_(3e38)), "the norm of the model is inf, most of it in fc2.bias:"),
        (with_tensors(lambda t: t["fc2.bias"].fill_(1e9)), "the norm of the model is 3.2e+09, most of it in fc2.bias:"),
        (with_examples(2**53 + 2), "the example count is 9007199254740994, wanted at most 9007199254740992"),
        (with_report(test__global__before__accuracy=1.5), "the score accuracy on test is 1.5, wanted 0 to 1"),
        (with_report(test__personal__after__loss=-1.0), "the score loss on test is -1.0, wanted at least 0"),
        (with_report(n__test=-4), "the sample count of test is -4, wanted 1 to"),
        (with_report(seconds__train=math.inf), "the seconds of train are inf, wanted a time"),
        (with_bytes(b""), "the reply cannot be read: EOFError"),
        (with_bytes(b"PK\x03\x04 no archive"), "the reply cannot be read: BadZipFile"),
        (with_bytes(HUGE), "the reply cannot be read: "),
        (with_bytes(b"cos\nsystem\n(S'true'\ntR."), "This file contains pickled (object) data."),
    ],
)
def test_a_reply_that_cannot_be_is_one_failure_with_its_reason(
    federate: Federate, change: Callable[[Message, Message], None], error: str
) -> None:
    run = federate(strategy="fedavg", num_server_rounds=1, client_app=tampered(change, client=2), **FEW)
    (failure,) = run.records[0]["failures"]
    assert failure["client"] == "2"
    assert failure["error"].startswith(error)
    assert run.records[0]["replies"] == 3
    assert all(bool(torch.isfinite(tensor).all()) for tensor in run.state.values())


def test_no_client_has_more_weight_than_the_cap_gives(federate: Federate) -> None:
    """One of two clients says that it has 2^53 samples, and has 42 like the other."""
    ends: list[Params] = []

    def remember(_message: Message, reply: Message) -> None:
        ends.append(read_tensors(reply.content.array_records["tensors"]))

    def lie(message: Message, reply: Message) -> None:
        with_examples(2**53)(message, reply)
        remember(message, reply)

    given: dict[str, Value] = {"num_server_rounds": 1, "evaluate_every": 1, **FEW}
    run = federate(strategy="fedavg", clients=2, client_app=tampered(lie, client=0), **given)
    for name, tensor in run.state.items():
        assert torch.equal(tensor, ends[0][name])  # the whole mean is its own
    given |= {"max_examples_per_client": 42}
    run = federate(strategy="fedavg", clients=2, client_app=tampered(lie, client=0), **given)
    federate(strategy="fedavg", clients=2, client_app=tampered(remember, client=1), **given)
    for name, tensor in run.state.items():
        assert torch.allclose(tensor, (ends[1][name] + ends[2][name]) / 2, atol=1e-6)


@pytest.mark.parametrize("strategy", methods())
def test_the_cap_has_an_effect_where_the_method_counts_samples_and_nowhere_else(
    federate: Federate, strategy: str
) -> None:
    """One of four clients says that it has a thousand samples; each has two batches, and one is all that may count."""
    given: dict[str, Value] = {"strategy": strategy, "evaluate_every": 1, "partitioner": "iid", **FEW}
    ends = {
        most: federate(client_app=tampered(with_examples(1000), client=0), max_examples_per_client=most, **given)
        for most in (0, 1)
    }
    counts = registry.method(strategy).counts_samples(parse({"strategy": strategy}).own)
    assert (ends[0].summary["digest"] != ends[1].summary["digest"]) == counts


def test_updates_that_are_too_long_are_shortened_and_recorded(
    federate: Federate, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "fedham_flwr")
    far = with_tensors(lambda tensors: tensors["fc2.bias"].add_(100.0))
    run = federate(strategy="fedavg", client_app=tampered(far, client=2), clip_norm=50.0, **FEW)
    trained = [record for record in run.records if record["kind"] == "train"]
    assert [record["clipped"] for record in trained] == [["2"], ["2"]]
    assert [record["failures"] for record in run.records] == [[], [], []]
    assert [r["clipped"] for r in run.records if r["kind"] != "train"] == [[]]
    assert caplog.messages.count("updates longer than clip-norm=50, and shortened to it: clients 2") == 2


def test_a_bound_that_nobody_reaches_changes_no_bit(federate: Federate) -> None:
    given: dict[str, Value] = {"strategy": "fedper", **FEW}
    plain, bound = federate(**given), federate(clip_norm=1e6, max_examples_per_client=10**6, **given)
    assert plain.summary["digest"] == bound.summary["digest"]


def all_filled(value: float) -> Callable[[dict[str, Tensor]], None]:
    def fill(tensors: dict[str, Tensor]) -> None:
        for tensor in tensors.values():
            tensor.fill_(value)

    return fill


def senders() -> list[str]:
    """The methods whose clients send tensors of a model."""
    return [name for name in methods() if not registry.method(name).own_networks]


@pytest.mark.parametrize(
    ("strategy", "clip"), [*((method, 0.0) for method in senders()), ("fedavg", 1.0), ("pfedla", 1.0)]
)
def test_the_largest_numbers_there_are_are_one_failed_reply(federate: Federate, strategy: str, clip: float) -> None:
    largest = with_tensors(all_filled(3e38))
    run = federate(
        strategy=strategy, client_app=tampered(largest, client=2), clip_norm=clip, samples_per_client=64,
        checkpoint_every=0,
    )  # fmt: skip
    trained = [record for record in run.records if record["kind"] == "train"]
    assert len(trained) == 2
    for record in trained:
        (failure,) = record["failures"]
        assert (failure["client"], record["replies"]) == ("2", 3)
        assert failure["error"].startswith("the norm of the model is inf, most of it in ")
    assert run.summary["failures"] == 2
    assert all(bool(torch.isfinite(t).all()) for t in run.state.values() if t.is_floating_point())


@pytest.mark.parametrize("strategy", senders())
def test_with_the_bound_large_numbers_stop_nobody(federate: Federate, strategy: str) -> None:
    large = with_tensors(all_filled(1e4))
    run = federate(
        strategy=strategy, client_app=tampered(large, client=2), clip_norm=1.0, samples_per_client=64,
        checkpoint_every=0,
    )  # fmt: skip
    assert run.summary["failures"] == 0
    assert all("2" in record["clipped"] for record in run.records if record["kind"] == "train")
    assert all(bool(torch.isfinite(t).all()) for t in run.state.values() if t.is_floating_point())


def test_without_the_bound_they_stop_the_others(federate: Federate) -> None:
    large = with_tensors(all_filled(1e5))
    with pytest.raises(UserError, match=r"round 2: \d of 4 clients gave a good reply to train"):
        federate(strategy="fedavg", client_app=tampered(large, client=2), samples_per_client=64, checkpoint_every=0)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"clip-norm": -1.0}, "clip-norm=-1.0: wanted greater than or equal to 0"),
        ({"max-examples-per-client": -1}, "max-examples-per-client=-1: wanted greater than or equal to 0"),
        ({"max-examples-per-client": 1.5}, "max-examples-per-client=1.5: wanted a valid integer"),
    ],
)
def test_settings_that_cannot_be_are_refused(given: dict[str, Value], message: str) -> None:
    with pytest.raises(UserError, match=message):
        parse(given)


def test_starts_are_made_again_for_some_clients_at_a_time(federate: Federate, monkeypatch: pytest.MonkeyPatch) -> None:
    given: dict[str, Value] = {"strategy": "fedavg", "clip_norm": 0.01, **FEW}
    whole = federate(**given)
    monkeypatch.setattr(exchange, "AT_ONCE", 3)
    parts = federate(**given)
    assert whole.summary["digest"] == parts.summary["digest"]
    assert parts.records[0]["clipped"] == ["0", "1", "2", "3"]


def test_the_bound_of_every_method_is_stated() -> None:
    page = (Path(__file__).resolve().parents[1] / "docs" / "bounds.md").read_text()
    derived = re.findall(r"^    ((?:[a-z]+, )*[a-z]+)   ", bounds.__doc__ or "", re.MULTILINE)
    assert set(", ".join(derived).split(", ")) <= set(BUILT_IN)
    cards = {name: importlib.import_module(f"fedham_flwr.algorithms.{name}").__doc__ or "" for name in BUILT_IN}
    assert [name for name, card in cards.items() if "\n    bound       " not in card] == []
    assert [name for name in BUILT_IN if f"`{name}`" not in page] == []
