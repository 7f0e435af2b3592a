"""Novel clients of every method: they never train with the others, adapt after the last round, and are scored twice."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable
from itertools import pairwise
from typing import Any

import pytest
import torch
from flwr.app import Message
from presets import EPOCHS, ONE_FOR_ALL, TELLS, adapts, has_stage, predictor_of
from test_rounds import Shuffled, shared_names

from fedham_flwr.core.errors import UserError
from fedham_flwr.core.records import Row
from fedham_flwr.data.clients import open_partition
from fedham_flwr.federation.record_values import tensors as read_tensors
from fedham_flwr.federation.roster import hold_out
from fedham_flwr.models import export
from fedham_flwr.reporting import journal
from fedham_flwr.reporting.progress import Progress
from fedham_flwr.reporting.summary import final, selected
from fedham_flwr.runners.in_process import InProcessGrid
from fedham_flwr.settings import Value, methods, parse
from fedham_flwr.training.optim import SGD
from fedham_flwr.training.stepping import Rules
from fedham_flwr.training.trainer import Trainer

Federate = Callable[..., Any]
HeldOut = Callable[..., Any]
NOVEL = hold_out(0, "0123", 1)[0]
MEMBERS = [client for client in "0123" if client != NOVEL]
FEW = 64
"""Samples of a client, which trains on 42 of them: two batches of 32 are an epoch."""
HELD_OUT: dict[str, Value] = {"novel_clients": 1, "novel_steps": 1, "novel_turns": 3, "samples_per_client": FEW}
MANY = 30
"""Steps that help every method."""
ADAPTED = "blocks.0.attention.to_qkv.weight", "blocks.1.attention.to_qkv.weight"
every_method = pytest.mark.parametrize("strategy", methods())
CPU = torch.device("cpu")


class Watching(InProcessGrid):
    """Keeps every message and its reply, and says which kind of message is being answered."""

    kind = ""

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self.seen: list[tuple[str, str, Message, Message]] = []

    def _answer(self, message: Message) -> Message:
        Watching.kind = message.metadata.message_type
        reply = super()._answer(message)
        client = str(self.contexts[message.metadata.dst_node_id].node_config["partition-id"])
        self.seen.append((self.kind, client, message, reply))
        return reply


@pytest.fixture(scope="module")
def done() -> dict[tuple[str, int], Any]:
    """The methods' runs with HELD_OUT and so many steps, which several tests look at and none changes."""
    return {}


@pytest.fixture
def held_out(federate: Federate, done: dict[tuple[str, int], Any], steps: Counter[str]) -> HeldOut:
    """A method's run with one novel client of four and an evaluation after each round; its steps are in `.steps`."""

    def run(strategy: str, novel_steps: int = 1) -> Any:
        key = strategy, novel_steps
        if key not in done:
            steps.clear()
            given = {**HELD_OUT, "novel_steps": novel_steps}
            done[key] = federate(strategy=strategy, evaluate_every=1, grid=Watching, **given)
            done[key].steps = Counter(steps)
        return done[key]

    return run


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How many steps of SGD, or of a method's own rule, are taken in answers to each kind of message."""
    found: Counter[str] = Counter()
    for taker in (SGD, Rules):

        def counting(self: Any, *given: Any, step: Any = taker.step) -> Any:
            found[Watching.kind] += 1
            return step(self, *given)

        monkeypatch.setattr(taker, "step", counting)
    return found


def kinds(run: Any, client: str) -> list[str]:
    return [kind for kind, who, _, _ in run.grid.seen if who == client and not kind.startswith("query")]


def tensors(message: Message) -> dict[str, torch.Tensor]:
    return {name: t for record in message.content.array_records.values() for name, t in read_tensors(record).items()}


def novel(rows: Iterable[Row]) -> list[Row]:
    return [row for row in rows if row.population == "novel"]


# ---- who is asked what -----------------------------------------------------------------------------------------------


@every_method
def test_a_novel_client_is_in_no_cohort_and_asked_only_after_the_last_round(held_out: HeldOut, strategy: str) -> None:
    run = held_out(strategy)
    turns = ["train.novel"] * 3 + ["evaluate.adapted"] if adapts(strategy) else []
    assert kinds(run, NOVEL) == ["evaluate.novel", *turns]
    last = "train.personal" if has_stage(strategy) else "evaluate"
    assert all(kinds(run, client) == ["train", "train", last] for client in MEMBERS)
    stages = [(record["round"], record["kind"], record["cohort"]) for record in run.records]
    after = [(3, "novel"), (3, "adapt"), (4, "adapt"), (5, "adapt"), (3, "adapted")]
    assert [entry for entry in stages if entry[1] != "query"] == [
        (1, "train", MEMBERS),
        (2, "train", MEMBERS),
        (3, last.removeprefix("train."), MEMBERS),
        *((*stage, [NOVEL]) for stage in after[: 5 if adapts(strategy) else 1]),
    ]
    assert run.summary["failures"] == 0
    assert run.summary["num-rounds"] == 2
    asked = [position for position, (_, client, _, _) in enumerate(run.grid.seen) if client == NOVEL]
    assert asked[0] < 4  # who it is, before the first round
    assert min(asked[1:]) > max(p for p, (_, client, _, _) in enumerate(run.grid.seen) if client != NOVEL)


@every_method
def test_it_is_scored_before_and_after_as_what_it_is(held_out: HeldOut, strategy: str) -> None:
    run = held_out(strategy)
    starts = "global" if strategy in ONE_FOR_ALL else "personal"
    scored = [row for row in run.rows if row.population == "novel"]
    assert {row[:6] for row in scored} == {
        (3, NOVEL, split, model, phase, metric)
        for split in ("validation", "test")
        for model, phase in ((starts, "before"), ("personal", "after"))
        for metric in ("accuracy", "loss")
    }
    assert {row.population for row in run.rows if row.client != NOVEL} == {"member"}
    assert not [row for row in run.rows if row.client == NOVEL and row.population == "member"]
    entries = [entry for entry in run.summary["final"] if entry["population"] == "novel"]
    assert len(entries) == 8
    assert {entry["clients"] for entry in entries} == {1}
    for entry in entries:
        (row,) = [
            row for row in scored if all(getattr(row, name) == entry[name] for name in ("split", "phase", "metric"))
        ]
        assert entry["mean"] == row.value
    assert {e["clients"] for e in run.summary["final"] if e["population"] == "member"} == {3}
    who = json.loads((run.path / "clients.json").read_text())
    assert {client["client"]: client["novel"] for client in who} == {client: client == NOVEL for client in "0123"}


@every_method
def test_members_statistics_and_the_choice_of_a_round_leave_it_out(held_out: HeldOut, strategy: str) -> None:
    run = held_out(strategy)
    rows = run.rows
    members = [row for row in rows if row.population == "member"]
    assert len(members) == len(rows) - 8
    assert [e for e in run.summary["final"] if e["population"] == "member"] == final(members)
    assert run.summary["selected"] == selected(members, set(MEMBERS))
    assert {entry["population"] for entry in run.summary["selected"]} == {"member"}
    assert {entry["chosen-on"] for entry in run.summary["selected"]} == {"validation"}


def test_the_pictures_and_the_lines_of_the_rounds_leave_it_out(
    federate: Federate, monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    shown: list[dict[str, float]] = []
    monkeypatch.setattr(Progress, "round", lambda _self, _number, values: shown.append(dict(values)))
    run = federate(strategy="fedper", pictures=True, **HELD_OUT)
    members = [row for row in run.rows if row.population == "member"]
    for draw, name in ((journal.learning_curves, "learning-curves.png"), (journal.client_bars, "clients.png")):
        draw(members, tmp_path / name, "fedper", "digits")
        assert (tmp_path / name).read_bytes() == (run.path / name).read_bytes()
    assert [(values["cohort"], values["replies"]) for values in shown] == [(3, 3), (3, 3)]


@every_method
def test_it_repeats_to_the_same_digest(federate: Federate, held_out: HeldOut, strategy: str) -> None:
    again = federate(strategy=strategy, evaluate_every=1, grid=Shuffled, **HELD_OUT)
    assert again.summary["digest"] == held_out(strategy).summary["digest"]


def test_which_clients_are_novel_depends_on_the_seed_and_not_on_the_method(federate: Federate) -> None:
    short = {"novel_clients": 2, "novel_steps": 1, "num_server_rounds": 1, "samples_per_client": FEW}
    held = {
        (strategy, seed): {row.client for row in novel(federate(strategy=strategy, seed=seed, **short).rows)}
        for strategy in ("local", "fedavg")
        for seed in (0, 1, 2)
    }
    for (_, seed), clients in held.items():
        assert clients == set(hold_out(seed, "0123", 2))
    assert len({tuple(sorted(clients)) for clients in held.values()}) > 1


# ---- what it is given, and what it gives -----------------------------------------------------------------------------


@every_method
def test_it_takes_as_many_steps_as_it_is_allowed(held_out: HeldOut, strategy: str) -> None:
    """Fewer and more than the 2 of an epoch; members' results do not depend on it."""
    few, many = held_out(strategy), held_out(strategy, MANY)
    for run, taken, allowed in ((few, few.steps, 1), (many, many.steps, MANY)):
        epochs = EPOCHS.get(strategy, 1)
        assert taken["train"] == 2 * 3 * 2 * epochs  # rounds, clients, batches of 32 of 42 samples
        wanted = (0, 3 * allowed, 0) if adapts(strategy) else (allowed, 0, 0)
        assert (taken["evaluate.novel"], taken["train.novel"], taken["evaluate.adapted"]) == wanted
        assert run.summary["failures"] == 0
    assert few.summary["digest"] != many.summary["digest"]
    mine, other = ([row for row in run.rows if row.population == "member"] for run in (few, many))
    assert mine == other
    sent, instead = ([tensors(seen[3]) for seen in run.grid.seen if seen[0] == "evaluate.novel"] for run in (few, many))
    assert [one.keys() for one in sent] == [one.keys() for one in instead]
    assert all(torch.equal(t, instead[0][name]) for name, t in sent[0].items())  # nothing of the training


@every_method
def test_its_scores_come_without_a_tensor_of_its_model(held_out: HeldOut, strategy: str) -> None:
    for kind, _, message, reply in held_out(strategy).grid.seen:
        if kind in ("evaluate.novel", "evaluate.adapted"):
            assert set(tensors(reply)) == TELLS.get(strategy, set())
            assert set(read_tensors(message.content.array_records["tensors"])) <= set(shared_names(strategy))


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ({}, ()),
        ({"fedtp.head": "fedper"}, ("head.weight", "head.bias")),
        ({"fedtp.head": "fedrod"}, ("head.personal.weight", "head.personal.bias")),
    ],
)
def test_fedtps_novel_client_trains_its_projections_and_a_personal_head_alone(
    federate: Federate, monkeypatch: pytest.MonkeyPatch, given: dict[str, Value], kept: tuple[str, ...]
) -> None:
    moved: list[set[str]] = []
    fit = Trainer.fit

    def watched(self: Trainer, *arguments: Any) -> float:
        before = self.read(self.parameter_names)
        loss = fit(self, *arguments)
        after = self.read(self.parameter_names)
        moved.append({name for name in after if not torch.equal(before[name], after[name])})
        return loss

    monkeypatch.setattr(Trainer, "fit", watched)
    run = federate(strategy="fedtp", weight_decay=0.01, grid=Watching, **HELD_OUT, **given)
    *of_members, one, two, three = moved
    assert one == two == three == {*ADAPTED, *kept}
    assert all(names > one for names in of_members)
    turns = [(message, reply) for kind, _, message, reply in run.grid.seen if kind == "train.novel"]
    assert len(turns) == 3
    for message, reply in turns:
        down, up = tensors(message), tensors(reply)
        assert set(up) == set(ADAPTED)  # the head stays
        assert not set(kept) & set(down)
        assert all(not torch.equal(up[name], down[name]) for name in ADAPTED)
    for (one, _), (other, _) in pairwise(turns):
        first, second = tensors(one), tensors(other)
        assert all(torch.equal(first[name], second[name]) == (name not in ADAPTED) for name in first)
    (context,) = [c for c in run.grid.contexts.values() if str(c.node_config["partition-id"]) == NOVEL]
    state = read_tensors(context.state.array_records["personal"]) if "personal" in context.state else {}
    assert state.keys() == set(kept)


@pytest.mark.parametrize("knn", [False, True])
def test_vanilla_fedtps_novel_client_adapts_alone(federate: Federate, knn: bool) -> None:
    given = {"fedtp.personal": "vanilla", "fedtp.knn": knn}
    run = federate(strategy="fedtp", grid=Watching, **HELD_OUT, **given)
    assert kinds(run, NOVEL) == ["evaluate.novel"]
    assert not tensors(run.grid.seen[-1][3])
    assert {(row.phase, row.model) for row in novel(run.rows)} == {("before", "personal"), ("after", "personal")}


@every_method
def test_its_exported_model_is_the_adapted_one(
    held_out: HeldOut, settings: Callable[..., dict[str, Value]], strategy: str
) -> None:
    run = held_out(strategy)
    files = sorted((run.path / "model").glob("*.safetensors"))
    assert [file.stem for file in files] == ["0", "1", "2", "3"]
    trainer = Trainer(export.load(run.path / "model" / f"{NOVEL}.safetensors"), CPU, "fp32")
    chosen = parse(settings(strategy=strategy, samples_per_client=FEW))
    data = open_partition(chosen.data(), int(NOVEL), 4)
    found = trainer.evaluate(data, "test", predictor_of(chosen, NOVEL, trainer, data))
    scored = {(row.phase, row.metric): row.value for row in novel(run.rows) if row.split == "test"}
    assert (found.values["accuracy"], found.loss) == (scored["after", "accuracy"], scored["after", "loss"])
    assert found.loss != scored["before", "loss"]


@every_method
def test_adapting_helps(held_out: HeldOut, strategy: str) -> None:
    rows = novel(held_out(strategy, MANY).rows)
    losses = {row.phase: row.value for row in rows if (row.split, row.metric) == ("test", "loss")}
    assert losses["after"] < losses["before"]


# ---- the edges -------------------------------------------------------------------------------------------------------


@every_method
def test_most_can_be_novel_and_few_of_the_others_train_at_a_time(federate: Federate, strategy: str) -> None:
    run = federate(
        clients=5, strategy=strategy, fraction_train=0.5, num_server_rounds=3, **{**HELD_OUT, "novel_clients": 3}
    )
    held = set(hold_out(0, "01234", 3))
    cohorts = [record["cohort"] for record in run.records if record["kind"] == "train"]
    assert [len(cohort) for cohort in cohorts] == [1, 1, 1]
    assert not held & {client for cohort in cohorts for client in cohort}
    closing = {(row.client, row.population) for row in run.rows if row.round == 4}
    assert closing == {(client, "novel" if client in held else "member") for client in "01234"}
    assert run.summary["failures"] == 0


@pytest.mark.parametrize("count", [4, 5])
def test_holding_everyone_out_is_refused_before_anyone_trains(federate: Federate, count: int) -> None:
    message = rf"^novel-clients={count} leaves nobody to train of 4 clients: it must be below their number$"
    with pytest.raises(UserError, match=message):
        federate(strategy="fedavg", novel_clients=count)


@pytest.mark.parametrize("strategy", ["fedavg", "fedtp"])
def test_without_novel_clients_nothing_is_different(federate: Federate, strategy: str) -> None:
    short = {"num_server_rounds": 1, "samples_per_client": FEW}
    run = federate(strategy=strategy, novel_steps=3, grid=Watching, **short)
    assert {kind for kind, *_ in run.grid.seen} == {"query", "train", "evaluate"}
    assert {row.population for row in run.rows} == {"member"}
    assert federate(strategy=strategy, **short).summary["digest"] == run.summary["digest"]


@every_method
def test_a_novel_client_that_has_left_is_no_ones_loss(federate: Federate, strategy: str) -> None:
    """Its node is gone when the last round is over."""

    class Leaving(InProcessGrid):
        def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
            messages = list(messages)
            if messages and messages[0].metadata.message_type in ("evaluate", "train.personal"):
                for node, context in list(self.contexts.items()):
                    if str(context.node_config["partition-id"]) == NOVEL:
                        del self.contexts[node]
            return super().push_messages(messages)

    run = federate(strategy=strategy, num_server_rounds=1, grid=Leaving, **HELD_OUT)
    assert not novel(run.rows)
    assert {row.client for row in run.rows if row.round == 2} == set(MEMBERS)
    assert "error" not in run.summary


def test_on_text_it_has_a_perplexity_too(federate: Federate, tmp_path: Any) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq
    from presets import TINY_CHAR

    lines = {"role": ["a", "b", "c"] * 20, "text": ["to be or not to be"] * 60}
    pq.write_table(pa.table(lines), tmp_path / "play.parquet")
    text = {"dataset": str(tmp_path / "play.parquet"), "partitioner": "natural", "client-column": "role"}
    for personal in ("generated", "vanilla"):
        run = federate(
            clients=3,
            strategy="fedtp",
            **TINY_CHAR,
            **text,
            **HELD_OUT,
            **{"fedtp.personal": personal, "sequence-length": 8},
        )
        assert {row.metric for row in novel(run.rows)} == {"accuracy", "loss", "perplexity"}
        assert len(novel(run.rows)) == 2 * 2 * 3
