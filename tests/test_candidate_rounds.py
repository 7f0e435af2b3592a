"""FedHAM and AMN with candidates as federations: what is sent and kept, who comes late, is novel, or forgets."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
from faults import tampered
from flwr.app import Array, ArrayRecord, Message
from test_fedham_kept import Forgetting
from test_fedham_rounds import TRANSPORTS, D, L, P, Watching, key

from fedham_flwr.core.records import NOVEL
from fedham_flwr.federation import wire
from fedham_flwr.federation.record_values import tensors as read_tensors
from fedham_flwr.reporting.mixing_weights import read_weights
from fedham_flwr.runners.cohort import CohortGrid
from fedham_flwr.runners.in_process import InProcessGrid
from fedham_flwr.settings import Value

Federate = Callable[..., Any]
MEDIATED, HOSTED = TRANSPORTS[1:]
both = pytest.mark.parametrize("options", [MEDIATED, HOSTED], ids=["mediated", "amn"])
K = 2
"""Candidates of each of six clients."""
FEW: dict[str, Value] = {"clients": 6, "samples_per_client": 64, "checkpoint_every": 0}
AMONG: dict[str, Value] = {"fedham.candidates": K, "fedham.candidates-drawn": 0.5}


def with_candidates(options: dict[str, Value], count: int = K) -> dict[str, Value]:
    return key(key(options, "candidates", count), "candidates-drawn", 0.5)


WATCHED: dict[str, Any] = {**FEW, **with_candidates(MEDIATED), "num_server_rounds": 3, "grid": Watching}
"""A run that several tests look at."""


def mixed(run: Any) -> Any:
    """The mixing weights that are not 0, with ids as text."""
    frame = read_weights(run.path).to_pandas()
    frame = frame[frame["weight"] > 0]
    return frame.assign(client=frame["client"].astype(str), peer=frame["peer"].astype(str))


def kept(run: Any, client: int) -> dict[str, torch.Tensor]:
    context = list(run.grid.contexts.values())[client]
    return read_tensors(context.state.array_records["personal"])


# ---- the ends --------------------------------------------------------------------------------------------------------


@both
@pytest.mark.parametrize("count", [3, 50])
def test_with_as_many_candidates_as_there_are_peers_nothing_changes_bit_for_bit(
    federate: Federate, federated: Federate, options: dict[str, Value], count: int
) -> None:
    given: dict[str, Value] = {"samples_per_client": 64, "evaluate_every": 2, "fraction_train": 0.75}
    given["num_server_rounds"] = 3
    whole, few = federated(**options, **given), federate(**with_candidates(options, count), **given)
    assert whole.summary["digest"] == few.summary["digest"]
    assert whole.state.keys() == few.state.keys()
    assert all(torch.equal(tensor, few.state[name]) for name, tensor in whole.state.items())
    assert [r["bytes-down"] for r in whole.records] == [r["bytes-down"] for r in few.records]


@both
def test_each_client_learns_from_its_candidates_and_itself(federated: Federate, options: dict[str, Value]) -> None:
    equal = {f"{options['strategy']}.initial-temperature": 0.0}
    run = federated(**with_candidates(options), **equal, **FEW, num_server_rounds=3, grid=Watching)
    frame = mixed(run)
    peers = frame.groupby(["round", "client"])["peer"].agg(set)
    assert all(len(some) == (K + 1 if n > 1 else 1) and client in some for (n, client), some in peers.items())
    assert len({tuple(sorted(some)) for (_, client), some in peers.items() if client == "0"}) > 1
    totals = frame.groupby(["round", "client", "group"], observed=True)["weight"].sum()
    assert totals.tolist() == pytest.approx([1.0] * len(totals), abs=1e-6)
    first = frame[frame["round"] == 2]["weight"]
    assert first.tolist() == pytest.approx([1 / (K + 1)] * len(first), rel=1e-6)
    assert run.summary["failures"] == 0


@pytest.mark.parametrize("grid", [InProcessGrid, CohortGrid])
def test_mediated_and_hosted_by_the_server_are_the_same_method(federate: Federate, grid: Any) -> None:
    common: dict[str, Value] = {**FEW, "num_server_rounds": 3, "evaluate_every": 2, "fraction_train": 0.75}
    mediated, hosted = (federate(**common, **with_candidates(each), grid=grid) for each in (MEDIATED, HOSTED))
    one, other = (mixed(run).reset_index(drop=True) for run in (mediated, hosted))
    places = ["round", "client", "group", "peer"]
    assert (one[places].astype(str) == other[places].astype(str)).all(axis=None)
    assert abs(one["weight"] - other["weight"]).max() < 1e-4
    assert one["weight"].max() - one["weight"].min() > 0.05  # and they have moved
    for name in (n for n in mediated.state if n.startswith("bank/")):
        assert torch.allclose(mediated.state[name], hosted.state[name], atol=1e-3), name


# ---- what is sent and kept -------------------------------------------------------------------------------------------


def test_bytes_of_mediated_do_not_grow_with_the_number_of_clients(federated: Federate) -> None:
    """Down P + M L d + M L (no scores before the first training), up P + M L, with M = K + 1, at 6 clients and at 9."""
    for clients in (6, 9):
        run = federated(**{**WATCHED, "clients": clients})
        down, up = ([r[f"bytes-{way}"] for r in run.records] for way in ("down", "up"))
        # Nobody has trained, and each looks at itself; and a byte of each says whether it may be mixed.
        assert down[0] + down[1] == clients * (4 * (P + L * D) + 1)
        assert down[2] + down[3] == clients * (4 * (P + (K + 1) * L * D + (K + 1) * L) + K + 1)
        assert up[2] + up[3] == clients * 4 * (P + (K + 1) * L)


def test_nothing_that_a_client_or_the_server_of_fedham_keeps_has_the_number_of_clients_twice(
    federated: Federate,
) -> None:
    run = federated(**{**WATCHED, "clients": 9})
    assert {tuple(t.shape) for n, t in run.state.items() if 9 in t.shape} >= {(9,), (9, L, K + 1)}
    assert not [name for name, tensor in run.state.items() if list(tensor.shape).count(9) > 1]
    for client in range(9):
        tensors = kept(run, client)
        assert tensors["seen/projections"].shape == (K + 1, L, D)
        assert not [name for name, tensor in tensors.items() if 9 in tensor.shape]


def test_a_meta_model_is_kept_once_it_has_learned_and_the_closing_round_leaves_nothing(
    federate: Federate, federated: Federate
) -> None:
    once, often = federate(**FEW, **with_candidates(MEDIATED), num_server_rounds=1), federated(**WATCHED)
    assert not [name for name in kept(once, 0) if name.startswith("meta/")]
    assert int(kept(once, 0)["seen/learned"]) == 0
    assert int(kept(often, 0)["seen/learned"]) == 2
    assert kept(often, 0)["meta/steps"].tolist() == [2.0]
    assert once.records[-1]["restarted"] == often.records[-1]["restarted"] == []


def test_a_row_over_everybody_is_refused(federate: Federate) -> None:
    def spoil(_message: Message, reply: Message) -> None:
        reply.content["extras"] = ArrayRecord({"row": Array(torch.full((L, 6), 1 / 6).numpy())})

    app = tampered(spoil, client=1, kind="query.before")
    run = federate(**FEW, **with_candidates(MEDIATED), client_app=app, num_server_rounds=1)
    (failure, *_) = run.records[0]["failures"]
    assert failure["client"] == "1"
    assert r"is torch.float32 (4, 6), wanted float32 (4, 1)" in failure["error"]


def test_places_of_peers_are_told_to_nobody(federated: Federate) -> None:
    run = federated(**WATCHED)
    told = [m.content for m in run.grid.seen if "facts" in m.content.config_records]
    facts = [content["facts"] for content in told]
    assert {frozenset(each) for each in facts} == {frozenset({"place", "scored", "few"})}
    assert all(each["place"][0] <= K for each in facts)
    assert {len(content["extras"]["shares"].numpy()) for content in told} == {1, K + 1}


# ---- who comes late, is novel, or forgets ----------------------------------------------------------------------------


class Late(InProcessGrid):
    """The last two nodes come in round 3."""

    hidden = True

    def get_node_ids(self) -> Iterable[int]:
        nodes = list(super().get_node_ids())
        return nodes[:-2] if self.hidden else nodes

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        messages = list(messages)
        if messages and messages[0].metadata.group_id == "2" and messages[0].metadata.message_type == "train":
            self.hidden = False
        return super().push_messages(messages)


@both
@pytest.mark.parametrize("clients", [5, 8])  # three of all at first, all of which are candidates; or six
def test_late_clients_are_nobodys_candidates_until_they_have_trained(
    federate: Federate, monkeypatch: pytest.MonkeyPatch, options: dict[str, Value], clients: int
) -> None:
    # as on real nodes, of which nobody knows how many there will be
    profile = wire.read_profile
    monkeypatch.setattr(wire, "read_profile", lambda content: dataclasses.replace(profile(content), partitions=0))
    given: dict[str, Value] = {**FEW, "clients": clients, "num_server_rounds": 4, "min_clients": clients - 2}
    run = federate(**with_candidates(options), **given, grid=Late)
    assert run.summary["failures"] == 0
    assert [len(r["cohort"]) for r in run.records if r["kind"] == "train"] == [clients - 2] * 2 + [clients] * 2
    frame, late = mixed(run), {str(clients - 2), str(clients - 1)}
    peers = frame.groupby(["round", "client"])["peer"].agg(set)
    for (number, client), some in peers.items():
        alone = number == 1 and clients == 8  # when nobody has trained
        late_now = number == 3 and client in late  # who has never trained is not mixed, oneself too
        assert len(some) == (1 if alone else K + 1 - late_now)
        assert number > 3 or not some & late
    assert any(some & late - {client} for (number, client), some in peers.items() if number > 3)


@both
def test_novel_clients_look_at_members_that_are_drawn(federate: Federate, options: dict[str, Value]) -> None:
    run = federate(**with_candidates(options), **FEW, novel_clients=2, novel_steps=1, num_server_rounds=2)
    assert run.summary["failures"] == 0
    rows = [row for row in run.rows if row.population == NOVEL]
    assert {row.phase for row in rows} == {"before", "after"}
    novel = {row.client for row in rows}
    assert len(novel) == 2
    assert not novel & set(mixed(run)["peer"])


def test_a_client_that_forgets_starts_its_meta_model_again_and_says_so(
    federate: Federate, caplog: pytest.LogCaptureFixture
) -> None:
    run = federate(**with_candidates(MEDIATED), **FEW, grid=Forgetting, num_server_rounds=3)
    assert run.summary["failures"] == 0
    said = {(r["round"], r["kind"]): r["restarted"] for r in run.records}
    assert {place: clients for place, clients in said.items() if clients} == {(2, "query"): ["0"]}
    assert "client 0 has lost its meta-model, which starts again" in caplog.text
    assert kept(run, 0)["meta/steps"].tolist() == [1.0]
    assert kept(run, 1)["meta/steps"].tolist() == [2.0]


def test_with_peers_as_transport_candidates_change_nothing(federate: Federate) -> None:
    few = {**TRANSPORTS[0], "samples_per_client": 64}
    whole, among = federate(**few), federate(**few, **AMONG)
    assert whole.summary["digest"] == among.summary["digest"]


def test_it_repeats_bit_for_bit_whatever_the_order_of_replies(federate: Federate) -> None:
    runs = [federate(**with_candidates(HOSTED), **FEW, clip_norm=0.05, num_server_rounds=3) for _ in range(2)]
    assert runs[0].summary["digest"] == runs[1].summary["digest"]
    assert any(r["clipped"] for r in runs[0].records)
