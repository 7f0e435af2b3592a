"""Whole federated rounds of every method, in this process."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
from faults import break_app, impersonate, strip, tampered, with_examples, with_tensors
from flwr.app import ArrayRecord, Message
from flwr.clientapp import ClientApp
from flwr.server.superlink.linkstate.utils import create_message_error_unavailable_res_message
from presets import (
    BRINGS_MORE,
    FIT_AT_ONCE,
    ONE_FOR_ALL,
    SEEN_TO_LEARN,
    has_stage,
    mixes,
    network,
    network_settings,
    predictor_of,
    sends_more,
    traffic,
)
from safetensors import safe_open

from fedham_flwr.client_app import make_client_app
from fedham_flwr.core.errors import UserError
from fedham_flwr.core.parameters import Manifest, read
from fedham_flwr.data.clients import open_partition
from fedham_flwr.federation import wire
from fedham_flwr.federation.contract import Task
from fedham_flwr.federation.messages import ClientFailure, Download
from fedham_flwr.federation.record_values import tensors as read_tensors
from fedham_flwr.federation.rounds import RoundStrategy
from fedham_flwr.models import export
from fedham_flwr.models.grouping import manifest_of
from fedham_flwr.runners.in_process import InProcessGrid
from fedham_flwr.server_app import build_strategy
from fedham_flwr.settings import Value, methods, parse
from fedham_flwr.training.trainer import Trainer

Federate = Callable[..., Any]
every_method = pytest.mark.parametrize("strategy", methods())


@pytest.fixture
def settings(settings: Callable[..., dict[str, Value]]) -> Callable[..., dict[str, Value]]:
    return lambda **given: settings(**{"samples_per_client": 64, **given})


def manifest(strategy: str) -> Manifest:
    return manifest_of(network(strategy), [])


def server_half(given: dict[str, Value]) -> RoundStrategy:
    strategy = str(given["strategy"])
    chosen = parse(network_settings(strategy) | given)
    initial = read(network(strategy), manifest(strategy).names())
    return build_strategy(chosen, manifest(strategy), initial, Task((1, 8, 8), 10))


def shared_names(strategy: str) -> tuple[str, ...]:
    """Tensors that the method's clients send, by its server half."""
    return server_half({"strategy": strategy}).split.shared


class Shuffled(InProcessGrid):
    """Answers in another order at every exchange, and keeps every message and reply."""

    def __init__(self, app: ClientApp, clients: int) -> None:
        super().__init__(app, clients)
        self.sent: list[Message] = []
        self.replies: list[Message] = []

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        messages = list(messages)
        self.sent += messages
        return super().push_messages(messages)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        ids = list(message_ids)
        random.Random(len(self.sent)).shuffle(ids)
        replies = list(super().pull_messages(ids))
        self.replies += replies
        return replies


@pytest.fixture
def watched(federated: Federate) -> Federate:
    """What the small run of a method left, with every message, reply and picture of it."""
    return lambda strategy: federated(strategy=strategy, samples_per_client=64, grid=Shuffled, pictures=True)


@every_method
def test_a_run_improves(federate: Federate, strategy: str) -> None:
    longer = {"num_server_rounds": 3, "samples_per_client": 0, **SEEN_TO_LEARN.get(strategy, {})}
    run = federate(strategy=strategy, evaluate_every=1, **longer)
    accuracy = {
        e["phase"]: e["mean"] for e in run.summary["final"] if (e["split"], e["metric"]) == ("test", "accuracy")
    }
    start = [row.value for row in run.rows if row[0] == 1 and row[2:6] == ("test", row.model, "before", "accuracy")]
    untrained = 0.1 if strategy in FIT_AT_ONCE else sum(start) / len(start)
    assert accuracy["after"] > untrained + 0.3


@every_method
def test_a_run_repeats_to_the_same_digest_and_is_another_with_another_seed(
    federate: Federate, watched: Federate, strategy: str
) -> None:
    run, again, other = watched(strategy), federate(strategy=strategy), federate(strategy=strategy, seed=1)
    assert run.summary["digest"] == again.summary["digest"] != other.summary["digest"]


@every_method
def test_personal_tensors_never_enter_a_message(watched: Federate, strategy: str) -> None:
    run, shared = watched(strategy), set(shared_names(strategy))
    messages = [m for m in run.grid.sent + run.grid.replies if m.metadata.message_type != "query"]
    assert sum(not m.metadata.message_type.startswith("query") for m in messages) == 2 * (2 * 4 + 4)
    everything = set(manifest(strategy).names())
    kept = {name for c in run.grid.contexts.values() for record in c.state.array_records.values() for name in record}
    for message in messages:
        assert set(message.content.array_records["tensors"]) <= shared
        sent = {name for record in message.content.array_records.values() for name in record}
        assert not (kept - shared) & sent
        last = message.metadata.reply_to_message_id and message.metadata.group_id == "3"
        assert sends_more(strategy) or not (last and sent)
        brought = strategy in BRINGS_MORE and not message.metadata.reply_to_message_id
        assert sends_more(strategy) or brought or sent <= shared
    if has_stage(strategy):  # all of it is the client's in the end
        assert kept == everything
    elif strategy == "fedham":  # keeps its own model, which it sends, and its meta-model
        assert {name for name in kept if not name.startswith("meta/")} == everything
        assert {"meta/query", "meta/key", "meta/query2", "meta/key2", "meta/gate"} <= kept
    else:  # and tensors of their own, beside the model's
        assert kept & everything == everything - shared
        assert all("/" in name for name in kept - everything)


@every_method
def test_the_exported_model_is_the_one_that_was_scored(
    watched: Federate, settings: Callable[..., dict[str, Value]], strategy: str
) -> None:
    run, chosen = watched(strategy), parse(settings(strategy=strategy))
    files = sorted((run.path / "model").glob("*.safetensors"))
    assert [file.stem for file in files] == ["0", "1", "2", "3"]
    for file in files:
        with safe_open(file, framework="pt") as opened:
            label = opened.metadata()
        trainer = Trainer(export.load(file), torch.device("cpu"), "fp32")
        data = open_partition(chosen.data(), int(file.stem), 4)
        scores = trainer.evaluate(data, "test", predictor_of(chosen, file.stem, trainer, data))
        (row,) = [r for r in run.rows if r[:3] == (3, file.stem, "test") and r[4:6] == (label["phase"], "accuracy")]
        assert scores.values["accuracy"] == row.value
        assert (label["client"], label["model"]) == (file.stem, network_settings(strategy)["model"])


@every_method
def test_the_summary_says_what_the_run_was(watched: Federate, strategy: str) -> None:
    run = watched(strategy)
    summary = run.summary
    what = {"strategy": strategy, "dataset": "digits", "model": network_settings(strategy)["model"], "seed": 0}
    assert summary.items() >= (what | {"num-clients": 4, "num-rounds": 2, "failures": 0}).items()
    shapes = manifest(strategy).shapes
    payload = sum(4 * torch.Size(shapes[name]).numel() for name in shared_names(strategy))
    assert sends_more(strategy) or summary["bytes"] == traffic(strategy, payload)
    assert summary["seconds"].keys() == {"start-up", "per-round", "total"}
    starts = "global" if strategy in ONE_FOR_ALL else "personal"
    assert {(e["model"], e["phase"]) for e in summary["final"]} == {(starts, "before"), ("personal", "after")}
    assert {e["clients"] for e in summary["final"]} == {4}
    mixed = ["mixing", "mixing-weights.png", "self-weights.png"] if mixes(strategy) else []
    assert sorted(file.name for file in run.path.iterdir()) == sorted([
        "checkpoints", "clients", "clients.json", "clients.png", "config.toml", "data.json", "environment.json",
        "learning-curves.png", "metrics", "model", "resume.toml", "rounds.jsonl", "server.safetensors",
        "summary.json", *mixed,
    ])  # fmt: skip


def test_who_has_what_is_stored(watched: Federate) -> None:
    clients = json.loads((watched("local").path / "clients.json").read_text())
    assert [client["client"] for client in clients] == ["0", "1", "2", "3"]
    for client in clients:
        assert client["classes"] == 2
        assert sum(client["train-labels"]) == client["train"]
    # four clients with two classes each hold eight of the ten digits
    assert sum(client[split] for client in clients for split in ("train", "validation", "test")) < 1797


def test_two_clients_never_share_a_record(watched: Federate) -> None:
    run = watched("fedavg")
    contents = [id(m.content.array_records["tensors"]) for m in run.grid.sent if m.metadata.message_type == "train"]
    assert len(set(contents)) == len(contents) == 8


def test_absent_clients_are_scored_when_an_evaluation_is_due_and_everyone_at_the_end(federate: Federate) -> None:
    run = federate(strategy="fedper", num_server_rounds=4, fraction_train=0.5, evaluate_every=2)
    scored = {n: {r.client for r in run.rows if r.round == n} for n in range(1, 6)}
    assert len(scored[1]) == len(scored[3]) == 2
    assert scored[2] == scored[4] == scored[5] == {"0", "1", "2", "3"}
    assert [(r["round"], r["kind"], len(r["cohort"])) for r in run.records] == [
        (1, "train", 2), (2, "evaluate", 2), (2, "train", 2), (3, "train", 2), (4, "evaluate", 2), (4, "train", 2),
        (5, "evaluate", 4),
    ]  # fmt: skip


def test_a_personal_head_written_in_one_round_is_where_the_next_one_starts(federate: Federate) -> None:
    heads: list[tuple[int, torch.Tensor]] = []

    class Looking(InProcessGrid):
        def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
            replies = list(super().pull_messages(message_ids))
            state = next(iter(self.contexts.values())).state
            if "personal" in state.array_records:
                label = state.config_records["personal-label"]
                heads.append((int(str(label["round"])), read_tensors(state.array_records["personal"])["fc2.bias"]))
            return replies

    federate(strategy="fedper", grid=Looking)
    rounds = [number for number, _ in heads]
    assert rounds == [1, 2, 2]  # after each round, and unchanged by the closing evaluation
    assert not torch.equal(heads[0][1], heads[1][1])
    assert torch.equal(heads[1][1], heads[2][1])


def test_a_client_that_lost_its_state_is_named_and_not_started_afresh(federate: Federate) -> None:
    class Forgetting(InProcessGrid):
        def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
            messages = list(messages)
            if messages[0].metadata.group_id == "2":
                next(iter(self.contexts.values())).state.clear()
            return super().push_messages(messages)

    run = federate(strategy="fedper", grid=Forgetting, checkpoint_every=0)
    (failure, *_) = [f for record in run.records for f in record["failures"]]
    assert (failure["round"], failure["client"]) == (2, "0")
    assert failure["error"] == (
        "client 0 has no personal state, though it has trained in this training: what it had learned is lost "
        '(fc2.weight, fc2.bias); with lost-state="restart" it starts again from the first tensors'
    )


def test_a_client_killed_in_mid_round_is_one_failure_and_the_rest_go_on(federate: Federate) -> None:
    run = federate(strategy="fedavg", client_app=tampered(break_app, client=2))
    assert [r["failures"] for r in run.records] == [
        [
            {
                "round": n,
                "stage": "train",
                "client": "2",
                "error": "train failed at client 2: RuntimeError: killed (code 2)",
            }
        ]
        for n in (1, 2)
    ] + [[]]
    assert run.summary["failures"] == 2
    assert run.summary["num-rounds"] == 2


@pytest.fixture(scope="module")
def absent(federated: Federate) -> Any:
    """What a round left in which client 2 failed."""
    killed = tampered(break_app, client=2)
    return federated(strategy="fedavg", samples_per_client=64, num_server_rounds=1, client_app=killed)


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (with_tensors(lambda t: t["fc2.bias"].fill_(float("nan"))), "fc2.bias holds NaN or infinity"),
        (with_tensors(lambda t: t["fc2.bias"].fill_(float("inf"))), "fc2.bias holds NaN or infinity"),
        (with_tensors(lambda t: t.update(x=t.pop("fc2.bias"))), "tensors are missing: ['fc2.bias']"),
        (with_tensors(lambda t: t.update(x=t["fc2.bias"])), "tensors are not wanted: ['x']"),
        (with_tensors(lambda t: t.update({"fc2.bias": torch.zeros(11)})), "fc2.bias has shape (11,), wanted (10,)"),
        (
            with_tensors(lambda t: t.update({"fc2.bias": t["fc2.bias"].double()})),
            "fc2.bias has dtype torch.float64, wanted torch.float32",
        ),
        (with_examples(0), "the example count is 0, wanted a positive whole number"),
        (with_examples(-5), "the example count is -5, wanted a positive whole number"),
        (with_examples(2.5), "the example count is 2.5, wanted a positive whole number"),
        (impersonate, "the reply of client 2 says that it comes from '0'"),
        (strip, "the reply lacks 'report'"),
    ],
)
def test_a_bad_reply_is_refused_with_its_reason_and_nothing_of_it_is_merged(
    federate: Federate, absent: Any, change: Callable[[Message, Message], None], error: str
) -> None:
    bad = federate(strategy="fedavg", num_server_rounds=1, client_app=tampered(change, client=2))
    (failure,) = bad.records[0]["failures"]
    assert (failure["client"], failure["error"]) == ("2", error)
    assert all(torch.equal(tensor, absent.state[name]) for name, tensor in bad.state.items())


def test_a_run_below_min_replies_stops_and_quotes_the_first_error(federate: Federate, tmp_path: Any) -> None:
    message = (
        r"round 1: 3 of 4 clients gave a good reply to train, and at least 4 are wanted \(min-replies=4\); "
        r"the first error is client 2's: train failed"
    )
    with pytest.raises(UserError, match=message):
        federate(strategy="fedavg", min_replies=4, client_app=tampered(break_app, client=2))
    (path,) = (tmp_path / "results").glob("*/*")
    summary = json.loads((path / "summary.json").read_text())
    assert "round 1: 3 of 4" in summary["error"]
    assert (path / "server.safetensors").exists()


def test_half_the_cohort_is_enough_by_default_and_less_is_not(federate: Federate) -> None:
    run = federate(clients=2, strategy="fedavg", client_app=tampered(break_app, client=1))
    assert run.summary["failures"] == 2
    with pytest.raises(UserError, match="0 of 1 clients gave a good reply to train, and at least 1"):
        federate(
            clients=1, strategy="fedavg", client_app=tampered(break_app, client=0), partitioner="iid", min_clients=1
        )


def test_min_replies_above_the_cohort_is_refused_before_anyone_trains(federate: Federate) -> None:
    with pytest.raises(
        UserError, match=r"min-replies=3 can never be reached: round 1 has a cohort of 2 \(fraction-train=0.5 of 4"
    ):
        federate(strategy="fedavg", min_replies=3, fraction_train=0.5)


def test_divergence_is_a_failure_with_advice_and_leaves_no_broken_state(federate: Federate) -> None:
    with pytest.raises(UserError, match=r"training diverged: .*lower learning-rate"):
        federate(strategy="fedper", learning_rate=1e8, samples_per_client=0)


def test_flowers_own_loop_drives_the_strategies_too(settings: Callable[..., dict[str, Value]]) -> None:
    chosen = settings(strategy="fedavg")
    strategy = server_half(chosen)
    initial = dict(strategy.state_dict())
    result = strategy.start(InProcessGrid(make_client_app(chosen), 3), ArrayRecord(), num_rounds=1)
    trained = read_tensors(result.arrays)
    assert trained.keys() == initial.keys()
    assert not torch.equal(trained["fc1.weight"], initial["fc1.weight"])


def test_a_node_that_has_gone_is_named_with_flowers_reason(federate: Federate) -> None:
    # Flower answers for it, and such an answer comes from no node.
    class Gone(InProcessGrid):
        def _answer(self, message: Message) -> Message:
            if (message.metadata.group_id, message.metadata.dst_node_id) == ("2", next(iter(self.contexts))):
                return create_message_error_unavailable_res_message(message.metadata, "node_unavail")
            return super()._answer(message)

    run = federate(strategy="fedavg", grid=Gone)
    ((number, client, error),) = [(f["round"], f["client"], f["error"]) for r in run.records for f in r["failures"]]
    assert (number, client) == (2, "0")
    assert "Node Unavailable" in error


def test_a_client_whose_data_are_of_another_kind_says_so(settings: Callable[..., dict[str, Value]]) -> None:
    grid = InProcessGrid(make_client_app(settings(strategy="fedavg")), 1)
    (node,) = grid.get_node_ids()
    for shape, classes in (((2, 13), 10), ((1, 8, 8), 4)):
        content = wire.write_download(Download(3, {}, shape, classes))
        (reply,) = grid.send_and_receive([Message(content, node, "evaluate", group_id="3")])
        with pytest.raises(ClientFailure, match=rf"samples of shape \(1, 8, 8\) and 10 outputs, .* and {classes}"):
            wire.read_upload(reply.content, 3)


def test_a_results_directory_that_cannot_be_written_stops_before_anything_else(
    federate: Federate, tmp_path: Any
) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"results-dir .*file.* cannot be written: .*; name another with results-dir="):
        federate(results_dir=str(tmp_path / "file"))
