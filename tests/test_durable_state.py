"""Nodes with a state-dir: what survives a restart, and how old it is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.app import Message
from nodes import kept, on_nodes
from safetensors import safe_open
from safetensors.torch import load_file

from fedham_flwr.federation import wire
from fedham_flwr.federation.messages import Download
from fedham_flwr.settings import Value

Federate = Callable[..., Any]
VARIANTS: Sequence[dict[str, Value]] = (
    {"strategy": "local"},
    {"strategy": "fedper"},
    {"strategy": "fedham", "fedham.transport": "peers"},
    {"strategy": "fedham", "fedham.transport": "mediated"},
    {"strategy": "pfedla", "pfedla.retained-layers": 1},
    {"strategy": "fedtp", "fedtp.personal": "vanilla"},
)


@pytest.fixture
def federate(federate: Federate, tmp_path: Path) -> Federate:
    """Of nodes; see `on_nodes`."""
    return on_nodes(federate, tmp_path)


# ---- a restart -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("given", VARIANTS, ids=str)
def test_nodes_that_were_restarted_go_on_as_if_they_had_not_been(
    federate: Federate, tmp_path: Path, given: dict[str, Value]
) -> None:
    rounds = {"num_server_rounds": 3, "evaluate_every": 2}
    usual = federate("usual", **given, **rounds)
    again = federate("again", restarts=(2, 3, 4), **given, **rounds)
    assert again.summary["failures"] == 0
    assert all(record["restored"] == record["restarted"] == [] for record in again.records)
    assert again.summary["digest"] == usual.summary["digest"]
    one, other = kept(tmp_path / "usual"), kept(tmp_path / "again")
    assert one.keys() == other.keys() == {f"node-{i}/site-{i}.safetensors" for i in range(3)}
    for file, tensors in one.items():
        assert tensors.keys() == other[file].keys()
        assert all(torch.equal(tensor, other[file][name]) for name, tensor in tensors.items())


def test_the_file_says_what_it_is(federate: Federate, tmp_path: Path) -> None:
    federate(strategy="fedper", num_server_rounds=2)
    (training,) = {file.parent.name for file in (tmp_path / "nodes").glob("*/*/site-*.safetensors")}
    with safe_open(tmp_path / "nodes" / "node-1" / training / "site-1.safetensors", framework="pt") as file:
        label = file.metadata()
        assert set(file.keys()) == {"fc2.weight", "fc2.bias"}
    told = {name: label[name] for name in ("schema", "method", "client", "training", "round")}
    assert told == {"schema": "1", "method": "fedper", "client": "site-1", "training": training, "round": "2"}


def test_another_training_does_not_touch_what_is_there(federate: Federate, tmp_path: Path) -> None:
    federate(strategy="fedper", num_server_rounds=2)
    before = {file: file.read_bytes() for file in (tmp_path / "nodes").glob("*/*/*.safetensors")}
    assert federate(strategy="fedper", num_server_rounds=1).summary["failures"] == 0
    after = {file: file.read_bytes() for file in (tmp_path / "nodes").glob("*/*/*.safetensors")}
    assert len(after) == 6
    assert before.items() <= after.items()


# ---- age -------------------------------------------------------------------------------------------------------------


def test_the_age_is_the_rounds_since_the_client_made_its_state(federate: Federate) -> None:
    run = federate(clients=4, strategy="fedper", num_server_rounds=6, fraction_train=0.5, evaluate_every=3)
    trained: dict[str, int] = {}
    stale = 0
    for record in run.records:
        number = record["round"]
        want = {client: number - trained[client] if client in trained else 0 for client in record["cohort"]}
        assert run.grid.ages[number, record["kind"]] == want
        stale = max(stale, *want.values())
        if record["kind"] == "train":
            trained |= dict.fromkeys(record["cohort"], number)
    assert stale >= 2
    assert set(run.grid.ages[7, "evaluate"]) == {f"site-{i}" for i in range(4)}


def test_a_client_that_keeps_nothing_has_no_age(federate: Federate, tmp_path: Path) -> None:
    run = federate(strategy="fedavg", num_server_rounds=2)
    assert {age for ages in run.grid.ages.values() for age in ages.values()} == {0}
    assert not kept(tmp_path / "nodes")


def test_with_a_question_before_the_round_the_answer_has_the_age(federate: Federate) -> None:
    """Since the client makes its state anew as it answers."""
    run = federate(**VARIANTS[3], num_server_rounds=3)
    assert {key: set(ages.values()) for key, ages in run.grid.ages.items()} == {
        (1, "query.before"): {0}, (2, "query.before"): {1}, (3, "query.before"): {1}, (4, "query.before"): {1},
        (1, "train"): {0}, (2, "train"): {0}, (3, "train"): {0}, (4, "evaluate"): {0},
    }  # fmt: skip


def test_a_state_of_a_later_round_is_used_and_its_age_is_below_nought(
    federate: Federate, settings: Callable[..., dict[str, Value]], tmp_path: Path
) -> None:
    """A server that went back to round 1, and asks for round 2 again."""
    run = federate(strategy="fedper", num_server_rounds=4)
    file = next((tmp_path / "nodes" / "node-0").glob("*/site-0.safetensors"))
    shared = run.state
    later = load_file(file)
    for kind, age in (("train", -2), ("evaluate", 0)):
        download = Download(2, shared, (1, 8, 8), 10, has_trained=True, training=file.parent.name)
        node = next(iter(run.grid.contexts))
        (reply,) = run.grid.send_and_receive([Message(wire.write_download(download), node, kind, group_id="2")])
        assert wire.read_upload(reply.content, 2).age == age
    assert not torch.equal(load_file(file)["fc2.weight"], later["fc2.weight"])
    with safe_open(file, framework="pt") as opened:
        assert opened.metadata()["round"] == "2"
