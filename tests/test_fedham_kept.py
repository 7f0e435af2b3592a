"""What FedHAM's clients keep, who comes late or is absent, and what happens when something is lost or wrong."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from faults import break_app, tampered
from flwr.app import Array, ArrayRecord, ConfigRecord, Message
from safetensors.torch import load_file
from test_fedham_rounds import DIGITS, TRANSPORTS, L
from test_pfedla_rounds import names, trained

from fedham_flwr import models
from fedham_flwr.algorithms.fedham import FedHAMSettings
from fedham_flwr.client_app import make_client_app
from fedham_flwr.core.errors import UserError
from fedham_flwr.core.parameters import read
from fedham_flwr.core.seeding import torch_stream
from fedham_flwr.federation import wire
from fedham_flwr.federation.contract import Task
from fedham_flwr.federation.messages import ClientFailure, Download, Upload
from fedham_flwr.federation.record_values import tensors as read_tensors
from fedham_flwr.mixing import meta_models
from fedham_flwr.mixing.meta_models import Projection
from fedham_flwr.mixing.peers import choose
from fedham_flwr.reporting.mixing_weights import latest, read_weights
from fedham_flwr.runners.in_process import InProcessGrid
from fedham_flwr.server_app import build_strategy
from fedham_flwr.settings import Value, parse

Federate = Callable[..., Any]
PEERS, MEDIATED = TRANSPORTS[:2]
both = pytest.mark.parametrize("options", [PEERS, MEDIATED], ids=["peers", "mediated"])


def server(clients: int = 4, **given: Value) -> Any:
    """A method's server half with its clients added: server(strategy="amn", **{"amn.unit": "layer"})."""
    settings = parse({"device": "cpu", **given})
    initial = read(models.build("digits-cnn", (1, 8, 8), 10, 0), DIGITS.names())
    made = build_strategy(settings, DIGITS, initial, Task((1, 8, 8), 10))
    made.add_clients(names(clients))
    return made


@pytest.fixture
def federate(federate: Federate) -> Federate:
    return partial(federate, samples_per_client=64)


class Forgetting(InProcessGrid):
    """The first client loses its state before round 2."""

    when = "2"
    done = False

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        messages = list(messages)
        if messages[0].metadata.group_id == self.when and not self.done:
            next(iter(self.contexts.values())).state.clear()
            self.done = True
        return super().push_messages(messages)


@both
def test_a_client_that_lost_its_meta_model_starts_it_again_and_says_so(
    federate: Federate, caplog: pytest.LogCaptureFixture, options: dict[str, Value]
) -> None:
    run = federate(**options, grid=Forgetting, num_server_rounds=3, checkpoint_every=0)
    assert run.summary["failures"] == 0
    said = {(r["round"], r["kind"]): (r["restored"], r["restarted"]) for r in run.records}
    if options is PEERS:  # it lost its model too, which the server has
        assert said == {(1, "train"): ([], []), (2, "train"): (["0"], ["0"]), (3, "train"): ([], []),
                        (4, "evaluate"): ([], [])}  # fmt: skip
    else:
        assert {place for place, what in said.items() if what != ([], [])} == {(2, "query")}
        assert said[2, "query"] == ([], ["0"])
    assert "client 0 has lost its meta-model, which starts again" in caplog.text
    assert "what they had learned for themselves was lost and starts again: 0" in caplog.text


class ForgettingLater(Forgetting):
    when = "3"


def test_a_meta_model_that_started_again_is_the_stated_one(federate: Federate) -> None:
    equal = {"fedham.initial-temperature": 0.0}
    run = federate(**MEDIATED, **equal, grid=ForgettingLater, num_server_rounds=3, checkpoint_every=0)
    frame = read_weights(run.path).to_pandas()
    second = frame[frame["round"] == 3].groupby("client", observed=True)["weight"].agg(["min", "max"])
    assert second.loc["0"].tolist() == pytest.approx([0.25, 0.25], abs=1e-6)
    assert second.loc["1", "max"] - second.loc["1", "min"] > 1e-4
    start = meta_models.initial(
        FedHAMSettings(initial_temperature=0.0), L, 4, torch_stream(0, "meta-model", client="0")
    )
    assert torch.equal(start["key"], torch.zeros_like(start["key"]))


@both
def test_on_a_node_the_meta_model_is_written_through(
    settings: Callable[..., dict[str, Value]], tmp_path: Path, options: dict[str, Value]
) -> None:
    """A client whose process ends finds it in its state-dir, and nothing starts again."""
    chosen = settings(**options)
    configs = [{"client-id": f"site-{i}", "state-dir": str(tmp_path / f"state-{i}")} for i in range(4)]
    grid = InProcessGrid(make_client_app(chosen), 4, node_configs=configs)
    initial = read(models.build("digits-cnn", (1, 8, 8), 10, 0), DIGITS.names())
    made = build_strategy(parse(chosen), DIGITS, initial, Task((1, 8, 8), 10, training="trial"))
    for number in (1, 2, 3):
        for context in grid.contexts.values():
            context.state.clear()  # a new process
        messages = made.configure_train(number, ArrayRecord(), ConfigRecord(), grid)
        made.aggregate_train(number, grid.send_and_receive(messages))
    file = tmp_path / "state-2" / "trial" / "site-2.safetensors"
    kept = load_file(file)
    assert {"meta/key", "meta/gate", "meta/first/key", "meta/steps"} <= kept.keys()
    assert kept["meta/steps"].item() == (15 if options is PEERS else 2)
    assert kept["meta/key"].abs().max() > 0


@both
def test_a_late_client_changes_nobodys_weights_until_it_has_trained(options: dict[str, Value]) -> None:
    made = server(**options, **{"fedham.peers": 4})
    for number in (1, 2):
        made.questions(number, names(4))
        starts = dict.fromkeys(names(4), made.first)
        if options is PEERS:
            made.plan(number, names(4))
        made.merge(number, with_rows(number, trained(starts, made.first, number), made, options))
    everyone = (*names(4), "late")
    made.add_clients(everyone)
    assert made._pool.allowed(everyone)[:, 4].tolist() == [False] * 5
    if options is MEDIATED:
        asked = made.questions(3, everyone)
    else:
        asked = {client: start.extras for client, start in made.plan(3, everyone).items()}
    assert asked["late"].facts["place"] == (4,)
    assert all(extras.tensors["shares"].tolist() == [1, 1, 1, 1, 0] for extras in asked.values())
    if options is PEERS:
        assert asked["0"].facts["peers"] == (1, 2, 3)
        assert asked["late"].facts["peers"] == (0, 1, 2, 3)


@pytest.mark.parametrize("rest", [False, True])
def test_what_is_looked_at_is_centred_on_the_pool_whichever_models_a_client_gets(rest: bool) -> None:
    few: dict[str, Value] = {"fedham.peers": 2, "fedham.mixed-rest": rest, "fedham.reference": "mean"}
    options: dict[str, Value] = {**PEERS, **few}
    made = server(5, **options)
    starts = dict.fromkeys(names(5), made.first)
    made.plan(1, names(5))
    made.merge(1, with_rows(1, trained(starts, made.first, 1), made, options))
    everyone = (*names(5), "late")
    made.add_clients(everyone)
    p = Projection(made.own.feature_dim, made._pool.bank, made.settings.seed).of(made._pool.bank, range(6))
    wanted = (p - p[:5].mean(0)).float()
    wanted[5] = 0  # it has not trained
    assert wanted[:5].abs().amin((1, 2)).max() > 0
    for start in made.plan(2, everyone).values():
        places = sorted(int(place) for kind in ("peers", "together", "place") for place in start.extras.facts[kind])
        assert len(places) == (len({*range(5), *start.extras.facts["place"]}) if rest else 3)
        assert torch.allclose(start.extras.tensors["projections"], wanted[places], rtol=0, atol=1e-5)


@both
def test_the_closing_evaluation_mixes_as_a_next_round_would(federate: Federate, options: dict[str, Value]) -> None:
    """So what is scored and exported has looked at what the last round left; what it learned of that is forgotten."""
    short, long = (federate(**options, num_server_rounds=number) for number in (2, 3))
    scores = [
        {(row.client, row.split, row.metric): row.value for row in run.rows if (row.round, row.phase) == (3, "before")}
        for run in (short, long)
    ]
    assert scores[0] == {which: scores[1][which] for which in scores[0]}
    assert len(scores[0]) >= 8


def with_rows(number: int, uploads: dict[str, Upload], made: Any, options: dict[str, Value]) -> dict[str, Upload]:
    """The uploads as the transport has them, with rows of equal weights."""
    row = {"row": torch.full((L, len(made._pool.bank.clients)), 1 / len(made._pool.bank.clients))}
    if options is MEDIATED:
        made.answered(number, {client: Upload(client, {}, 10, (), {}, row) for client in uploads})
        return uploads
    return {client: Upload(client, upload.params, 10, (), {}, row) for client, upload in uploads.items()}


def test_a_client_that_does_not_answer_is_left_out_of_the_round(federate: Federate) -> None:
    run = federate(**MEDIATED, client_app=tampered(break_app, client=2, kind="query.before"), num_server_rounds=3)
    assert [(r["round"], f["client"]) for r in run.records for f in r["failures"]] == [(n, "2") for n in (1, 2, 3, 4)]
    assert {f["stage"] for r in run.records for f in r["failures"]} == {"query"}
    assert [r["cohort"] for r in run.records] == [["0", "1", "2", "3"], ["0", "1", "3"]] * 4
    frame = read_weights(run.path).to_pandas()
    assert set(frame["client"]) == {"0", "1", "3"}
    assert run.state["learned"].tolist() == [True, True, False, True]
    assert run.summary["failures"] == 4


@both
@pytest.mark.parametrize(
    ("change", "error"),
    [
        (lambda t: t["row"].mul_(2), "has negative weights, or does not sum to 1"),
        (lambda t: t["row"].neg_(), "has negative weights, or does not sum to 1"),
        (lambda t: t["row"].fill_(float("nan")), "has negative weights, or does not sum to 1"),
        (lambda t: t.update(row=t["row"][:, :3]), r"is torch.float32 \(4, 3\), wanted float32 \(4, 4\)"),
        (lambda t: t.update(row=t["row"].double()), "is torch.float64"),
        (lambda t: t.update(psi=t.pop("row")), r"tensors other than the model's are \['psi'\], wanted \['row'\]"),
        (lambda t: t.clear(), r"tensors other than the model's are \[\], wanted \['row'\]"),
    ],
)
def test_a_row_that_is_none_is_refused(
    federate: Federate, options: dict[str, Value], change: Callable[[dict[str, Any]], Any], error: str
) -> None:
    def spoil(_message: Message, reply: Message) -> None:
        tensors = read_tensors(reply.content.array_records["extras"])
        change(tensors)
        reply.content["extras"] = ArrayRecord({n: Array(t.numpy()) for n, t in tensors.items()})

    kind = "train" if options is PEERS else "query.before"
    run = federate(**options, client_app=tampered(spoil, client=1, kind=kind), num_server_rounds=1)
    (failure, *_) = run.records[0]["failures"]
    assert failure["client"] == "1"
    assert re.search(error, failure["error"])


FEW_PEERS: dict[str, Value] = {**PEERS, "fedham.peers": 5, "fedham.exploration": 0.4}


def told(made: Any, weights: dict[int, float], client: str = "0") -> None:
    """Let a client answer that it listens to these peers."""
    row = torch.zeros(L, len(made._pool.ready))
    row[:, 0] = 1 - sum(weights.values())
    row[:, list(weights)] = torch.tensor(list(weights.values()))
    made.answered(1, {client: Upload(client, {}, 0, (), extras={"row": row})})


def test_peers_are_those_of_largest_weight_and_some_that_are_drawn() -> None:
    made = server(clients=12, **FEW_PEERS)
    made.questions(1, names(12))
    told(made, {3: 0.2, 7: 0.3, 9: 0.1})

    def peers_of(made: Any, number: int) -> Any:
        return choose(made._pool, made.own, made.settings.seed, number, "0", made._rows.get("0"))

    some = [peers_of(made, number) for number in range(1, 40)]
    chosen = [one.peers for one in some]
    assert all(len(set(peers)) == 5 and 0 not in peers and {3, 7, 9} <= set(peers) for peers in chosen)
    assert {peer for peers in chosen for peer in peers} == set(range(1, 12))
    assert peers_of(made, 3).peers == peers_of(made, 3).peers
    for peers, together in (one[:2] for one in some):  # those that come as one are the others
        assert {0, *peers, *together.places.tolist()} == set(range(12))
        assert len(peers) + len(together.places) == 11
        assert together.weights.sum(-1).tolist() == pytest.approx([1] * len(together.weights))
    every = peers_of(server(clients=12, **PEERS, **{"fedham.peers": 11}), 1)
    assert (every.peers, len(every.together.places)) == (list(range(1, 12)), 0)


def test_a_state_with_rows_of_an_earlier_version_opens() -> None:
    made = server(clients=4, **FEW_PEERS)
    state = made.state_dict()
    assert "last" not in state
    made.load_state_dict({**state, "last": torch.full((4, L, 4), 0.25)})
    assert made.state_dict().keys() == state.keys()


def test_who_is_sent_all_models_is_not_asked_whose_it_wants() -> None:
    for peers, asked in ((0, ()), (2, names(4)), (3, ()), (9, ())):
        assert tuple(server(clients=4, **PEERS, **{"fedham.peers": peers}).questions(1, names(4))) == asked
    made = server(clients=4, **PEERS, **{"fedham.peers": 3})
    made.add_clients(names(5))  # a late one has four others to choose from, and they three: it may not be mixed yet
    assert tuple(made.questions(1, names(5))) == ("4",)


@pytest.mark.parametrize("rest", [False, True])
def test_a_client_is_sent_those_whom_it_says_it_listens_to(federate: Federate, rest: bool) -> None:
    """Its answer is the row of its meta-model over all projections, before the server has sent it a model."""
    places: dict[int, int] = {}
    wanted: dict[int, set[str]] = {}
    sent = []

    class Watching(InProcessGrid):
        def _carry(self, message: Message) -> Message:
            if message.has_content() and "extras" in message.content.array_records:
                look(message, message.content.array_records["extras"])
            return super()._carry(message)

    def look(message: Message, extras: ArrayRecord) -> None:
        about, names = message.metadata, set(extras)
        if names == {"projections", "shares"}:  # the question
            places[about.dst_node_id] = int(message.content.config_records["facts"]["place"][0])  # type: ignore[index]
        elif "projections" in names:  # the models
            models = {name.partition("/")[0] for name in names if "/" in name}
            sent.append(models == wanted.pop(about.dst_node_id) | ({"together"} if rest else set()))
        elif about.message_type.startswith("query"):  # the answer
            row = read_tensors(extras)["row"].mean(0)
            row[places[about.src_node_id]] = -1
            wanted[about.src_node_id] = {str(place) for place in row.argsort(descending=True)[:2].tolist()}

    few = {**FEW_PEERS, "fedham.peers": 2, "fedham.exploration": 0.0, "fedham.learning-rate": 0.1}
    few["fedham.mixed-rest"] = rest
    run = federate(grid=Watching, clients=6, num_server_rounds=4, **few)
    assert run.summary["failures"] == 0
    assert len(sent) == 30  # four rounds and the closing evaluation
    assert all(sent[12:])  # until models differ weights are equal, and lots decide
    some = (latest(read_weights(run.path)).weights > 0).sum(-1)
    assert (some == (6 if rest else 3)).all()


@pytest.mark.parametrize(("clients", "mediated"), [(2, False), (20, False), (21, True)])
def test_auto_is_peers_up_to_20_clients_and_stays_what_it_was(clients: int, mediated: bool) -> None:
    made = server(clients=clients, strategy="fedham")
    assert bool(made._mediated) is mediated
    made.add_clients(names(clients + 5))
    assert bool(made._mediated) is mediated
    again = server(clients=1, strategy="fedham")
    again.load_state_dict({name: tensor.clone() for name, tensor in made.state_dict().items()})
    assert bool(again._mediated) is mediated


def test_b2_needs_peers() -> None:
    with pytest.raises(
        UserError, match=r'^fedham.base-objective="own" needs fedham.transport="peers", not "mediated"$'
    ):
        server(**MEDIATED, **{"fedham.base-objective": "own"})
    assert not server(clients=25, strategy="fedham", **{"fedham.base-objective": "own"})._mediated


def test_a_method_that_asks_nothing_says_so(settings: Callable[..., dict[str, Value]]) -> None:
    grid = InProcessGrid(make_client_app(settings(strategy="fedavg")), 2)
    node = next(iter(grid.contexts))
    content = wire.write_download(Download(1, {}, (1, 8, 8), 10))
    (reply,) = grid.send_and_receive([Message(content, node, "query.before")])
    with pytest.raises(ClientFailure, match="strategy=fedavg asks its clients nothing before a round"):
        wire.read_upload(reply.content, 1)
