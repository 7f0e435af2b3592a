"""The mod that protects what clients send: one message, and whole rounds."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Error, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from test_privacy import ON
from test_rounds import Shuffled

from fedham_flwr.client_app import make_client_app
from fedham_flwr.core import privacy
from fedham_flwr.core.privacy import PrivacySettings
from fedham_flwr.federation import wire
from fedham_flwr.federation.messages import Download
from fedham_flwr.federation.privacy_mod import private
from fedham_flwr.federation.record_values import tensors
from fedham_flwr.runners.in_process import InProcessGrid
from fedham_flwr.settings import Value, parse

Federate = Callable[..., Any]


@pytest.fixture(autouse=True)
def _a_node() -> None:
    """Messages are made by a process that has a place in a run."""
    InProcessGrid(ClientApp(), 1)


# ---- one message -------------------------------------------------------------------------------------------------


def sent_by(
    start: dict[str, np.ndarray], after: dict[str, np.ndarray], kind: str = "train", **settings: Value
) -> dict[str, np.ndarray] | str:
    """What a client with these settings sends of a model, or the sentence with which it sends nothing."""
    chosen = parse({"strategy": "fedavg", **ON, **{f"dp.{key.replace('_', '-')}": v for key, v in settings.items()}})
    context = Context(1, 2, {"partition-id": 0}, RecordDict(), {})
    message = Message(RecordDict({"tensors": record_of(start), "instructions": ConfigRecord()}), 2, kind)
    message.metadata.__dict__["_message_id"] = "m"
    content = RecordDict({"tensors": record_of(after), "report": MetricRecord({"examples": 1})})
    reply = private(lambda _: chosen)(message, context, lambda m, _: Message(content, reply_to=m))
    if wire.FAILURE in reply.content.config_records:
        assert not reply.content.array_records
        return str(reply.content.config_records[wire.FAILURE]["error"])
    assert list(reply.content.array_records["tensors"]) == list(start)
    return {name: array.numpy() for name, array in reply.content.array_records["tensors"].items()}


def record_of(arrays: dict[str, np.ndarray]) -> ArrayRecord:
    return ArrayRecord({name: Array(value) for name, value in arrays.items()})


def model(seed: int, size: int = 40_000) -> dict[str, np.ndarray]:
    draw = np.random.default_rng(seed)
    return {
        "a.weight": draw.standard_normal((size // 100, 100)).astype(np.float32),
        "a.bias": draw.standard_normal(7).astype(np.float32),
    }


def flat(arrays: Any) -> np.ndarray:
    assert not isinstance(arrays, str), arrays
    return np.concatenate([value.ravel() for value in arrays.values()]).astype(np.float64)


@pytest.mark.parametrize(
    ("epsilon", "clipping_norm", "sensitivity"), [(0.5, 0.5, 0.0), (2.0, 3.0, 4.0), (50.0, 0.1, 0.0)]
)
def test_every_number_that_is_sent_has_noise_of_the_right_size(
    epsilon: float, clipping_norm: float, sensitivity: float
) -> None:
    settings = {"epsilon": epsilon, "clipping_norm": clipping_norm, "sensitivity": sensitivity}
    start = model(0)
    noise = flat(sent_by(start, model(1), **settings)) - flat(start)
    sigma = privacy.noise(PrivacySettings(epsilon, 1e-5, clipping_norm, sensitivity))
    # 40,007 numbers: the deviation is known to one in 283; the clipped update adds C^2 / 40,007 to each square.
    assert np.sqrt(np.mean(noise**2)) == pytest.approx(sigma, rel=0.02)
    assert abs(noise.mean()) < 5 * sigma / 200
    assert np.mean(np.abs(noise) < sigma) == pytest.approx(0.6827, abs=0.015)  # a normal distribution
    assert (noise[-7:] != 0).all()


def test_with_the_weakest_noise_what_is_sent_is_the_clipped_update() -> None:
    start, after = model(0), model(1)
    update = flat(after) - flat(start)
    settings: dict[str, Value] = {"epsilon": 1e6, "clipping_norm": 0.5}
    sigma = privacy.noise(PrivacySettings(1e6, 1e-5, 0.5))
    clipped = flat(sent_by(start, after, **settings)) - flat(start)
    assert np.linalg.norm(clipped - 0.5 * update / np.linalg.norm(update)) < 1.1 * sigma * 200 + 1e-4
    assert np.linalg.norm(clipped) == pytest.approx(0.5, abs=0.05)
    short = {name: value + np.float32(1e-4) for name, value in start.items()}  # of length 0.02
    kept = flat(sent_by(start, short, **settings)) - flat(start)
    assert np.mean(kept) == pytest.approx(1e-4, rel=0.1)


def test_no_seed_decides_the_noise_and_the_global_generator_is_left_alone() -> None:
    start, after, sent = model(0, 1000), model(1, 1000), []
    for _ in range(3):
        np.random.seed(7)  # noqa: NPY002
        expected = np.random.get_state()[1].copy()  # noqa: NPY002
        sent.append(flat(sent_by(start, after)))
        assert (np.random.get_state()[1] == expected).all()  # noqa: NPY002
    assert not (sent[0] == sent[1]).any()
    # Were two noises the same or related, their difference would be smaller.
    sigma = privacy.noise(PrivacySettings(2.0, 1e-5, 0.5))
    for one, other in ((0, 1), (0, 2), (1, 2)):
        assert np.std(sent[one] - sent[other]) == pytest.approx(math.sqrt(2) * sigma, rel=0.15)


def test_the_noise_cannot_be_made_again_from_any_small_seed() -> None:
    start = {"a": np.zeros(50, np.float32)}
    noise = flat(sent_by(start, {"a": np.full(50, 1e-3, np.float32)}))
    sigma = privacy.noise(PrivacySettings(2.0, 1e-5, 0.5))
    for seed in range(200):
        again = np.random.RandomState(seed).normal(0, sigma, 50)
        assert np.abs(noise - again).max() > sigma / 10


@pytest.mark.parametrize("scale", [0.0, 1e-20, 1e-30])
def test_no_update_is_sent_with_noise_too(scale: float) -> None:
    start = model(0, 1000)
    after = {name: value + np.float32(scale) for name, value in start.items()}
    noise = flat(sent_by(start, after)) - flat(start)
    assert np.std(noise) == pytest.approx(privacy.noise(PrivacySettings(2.0, 1e-5, 0.5)), rel=0.15)


def test_an_update_too_long_for_float32_is_clipped() -> None:
    start = {"a": np.zeros((100, 100), np.float32)}
    noise = flat(sent_by(start, {"a": np.full((100, 100), 1e30, np.float32)}))
    assert np.isfinite(noise).all()
    assert np.std(noise) == pytest.approx(privacy.noise(PrivacySettings(2.0, 1e-5, 0.5)), rel=0.05)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"a.bias": np.zeros(7, np.int64)}, "a.bias is int64 (7,), and only float32 arrays with at least one axis"),
        ({"a.bias": np.zeros(7, np.float64)}, "a.bias is float64 (7,), and only float32 arrays with at least one axis"),
        ({"a.bias": np.zeros(7, np.float16)}, "a.bias is float16 (7,), and only float32 arrays with at least one axis"),
        ({"a.bias": np.array(1, np.float32)}, "a.bias is float32 (), and only float32 arrays with at least one axis"),
        (
            {"b": np.zeros(7, np.float32)},
            "LocalDpMod expects the keys in the ArrayRecord of the reply message to match",
        ),
        ({"a.bias": np.full(7, np.nan, np.float32)}, "a.bias with noise holds NaN or infinity: it is not sent"),
    ],
)
def test_what_cannot_be_protected_is_not_sent(change: dict[str, np.ndarray], message: str) -> None:
    error = sent_by(model(0, 1000), model(1, 1000) | change)
    assert isinstance(error, str)
    assert message in error


@pytest.mark.parametrize("kind", ["train.novel", "train.personal", "evaluate", "query.before"])
def test_a_model_in_another_reply_is_not_sent(kind: str) -> None:
    error = sent_by(model(0, 1000), model(1, 1000), kind)
    assert error == (
        f"dp.epsilon=2 protects the model in a reply to train, and this reply to {kind} has tensors: it is not sent"
    )


def test_tensors_beside_the_model_are_not_sent() -> None:
    chosen, context = parse({"strategy": "fedavg", **ON}), Context(1, 2, {}, RecordDict(), {})
    message = Message(RecordDict({"tensors": record_of(model(0, 1000))}), 2, "train")
    message.metadata.__dict__["_message_id"] = "m"
    content = RecordDict({"tensors": record_of(model(1, 1000)), "extras": record_of({"row": np.ones(3, np.float32)})})
    reply = private(lambda _: chosen)(message, context, lambda m, _: Message(content, reply_to=m))
    assert not reply.content.array_records
    assert "this reply to train has tensors, extras: it is not sent" in str(reply.content.config_records["failure"])


def test_a_failure_passes_as_the_client_has_told_it() -> None:
    chosen, context = parse({"strategy": "fedavg", **ON}), Context(1, 2, {}, RecordDict(), {})
    message = Message(RecordDict({"tensors": record_of(model(0, 1000))}), 2, "train")
    message.metadata.__dict__["_message_id"] = "m"
    told = wire.write_failure("the disk is full", simulated=True)
    reply = private(lambda _: chosen)(message, context, lambda m, _: Message(told, reply_to=m))
    assert reply.content.config_records["failure"]["error"] == "the disk is full"
    broken = private(lambda _: chosen)(message, context, lambda m, _: Message(Error(2, "killed"), reply_to=m))
    assert broken.error.reason == "killed"


def test_variances_stay_variances() -> None:
    start = {"bn.running_var": np.full(1000, 0.01, np.float32), "bn.running_mean": np.zeros(1000, np.float32)}
    after = {name: value + np.float32(0.001) for name, value in start.items()}
    sent = sent_by(start, after)
    assert not isinstance(sent, str)
    assert sent["bn.running_var"].min() == 0
    assert (sent["bn.running_var"] > 0).mean() == pytest.approx(0.5, abs=0.1)
    assert sent["bn.running_mean"].min() < 0


# ---- whole rounds ------------------------------------------------------------------------------------------------


def updates(grid: Any) -> list[tuple[str, int, torch.Tensor]]:
    """Of every reply to train: node, round, and all it has changed in a row."""
    down = {m.metadata.message_id: m for m in grid.sent}
    found = []
    for reply in grid.replies:
        if reply.metadata.message_type == "train":
            sent = down[reply.metadata.reply_to_message_id]
            before, after = (tensors(m.content.array_records["tensors"]) for m in (sent, reply))
            change = torch.cat([(after[name] - before[name]).flatten() for name in after])
            found.append((str(reply.metadata.src_node_id), int(sent.metadata.group_id), change))
    return found


def test_what_a_federation_puts_on_the_wire_is_clipped_and_has_noise(federate: Federate) -> None:
    given: dict[str, Value] = {"dp.epsilon": 20.0, "dp.clipping-norm": 0.05}
    run = federate(strategy="fedavg", grid=Shuffled, samples_per_client=64, **given)
    honest = federate(strategy="fedavg", grid=Shuffled, samples_per_client=64)
    sigma = privacy.noise(PrivacySettings(20.0, 1e-5, 0.05))
    noisy, plain = updates(run.grid), updates(honest.grid)
    assert len(noisy) == len(plain) == 8
    size = len(noisy[0][2])
    for _, _, change in noisy:
        assert float(change.norm()) == pytest.approx(math.sqrt(sigma**2 * size + 0.05**2), rel=0.03)
    assert max(float(change.norm()) for _, _, change in plain) > 0.05  # there was something to clip
    changes = [change for _, _, change in noisy]
    for at, one in enumerate(changes):
        for other in changes[at + 1 :]:
            # Two clients or rounds have nothing in common but an update that is far shorter than the noise.
            assert abs(float(torch.nn.functional.cosine_similarity(one, other, dim=0))) < 0.1


def test_two_runs_with_one_seed_get_different_noise(federate: Federate) -> None:
    given: dict[str, Value] = {"samples_per_client": 64, "num_server_rounds": 1, **ON}
    first, second = (federate(strategy="fedavg", **given) for _ in range(2))
    assert not (first.state["conv1.weight"] == second.state["conv1.weight"]).any()


def test_with_weak_noise_a_federation_still_learns(federate: Federate) -> None:
    given: dict[str, Value] = {"dp.epsilon": 1e5, "dp.clipping-norm": 1.0}
    run = federate(
        strategy="fedavg", num_server_rounds=4, batch_size=10, partitioner="iid", samples_per_client=200, **given
    )
    (before,) = [
        e["mean"]
        for e in run.summary["final"]
        if (e["model"], e["phase"], e["split"], e["metric"]) == ("global", "before", "test", "accuracy")
    ]
    assert before > 0.35  # of ten classes; a tenth at the start, 0.55 in three runs
    assert run.summary["failures"] == 0


@pytest.mark.parametrize("strategy", ["fedprox", "fedper", "fedtransfer"])
def test_personal_layers_stay_at_home_and_whole_runs_pass(federate: Federate, strategy: str) -> None:
    weak: dict[str, Value] = {"dp.epsilon": 1e5, "dp.clipping-norm": 1.0, "samples_per_client": 64}
    run = federate(strategy=strategy, grid=Shuffled, **weak)
    assert run.summary["failures"] == 0
    sent = {name for m in run.grid.replies for record in m.content.array_records.values() for name in record}
    kept = {n for c in run.grid.contexts.values() for record in c.state.array_records.values() for n in record}
    if strategy == "fedper":
        assert kept == {"fc2.weight", "fc2.bias"}
        assert not kept & sent


def test_a_client_whose_settings_are_wrong_says_so(settings: Callable[..., dict[str, Value]]) -> None:
    app: ClientApp = make_client_app({**settings(strategy="fedavg"), "dp.epsilon": 1.0})
    content = wire.write_download(Download(1, {}, (1, 8, 8), 10))
    message = Message(content, 2, "train")
    message.metadata.__dict__["_message_id"] = "m"
    reply = app(message, Context(1, 2, {"partition-id": 0, "num-partitions": 2}, RecordDict(), {}))
    assert "dp.epsilon=1 needs dp.clipping-norm" in str(reply.content.config_records["failure"]["error"])
