"""Clustered FedAvg: groups by number and by table, means by hand and by loops, FedAvg and local as its ends."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from fedham_flwr import load_model
from fedham_flwr.algorithms.clustered import group_of, merge
from fedham_flwr.core.errors import UserError

Federate = Callable[..., Any]
FEW: dict[str, Any] = {"num_server_rounds": 2, "samples_per_client": 48, "batch_size": 10}


def test_the_mean_of_each_group_by_hand() -> None:
    models = {"a": {"w": torch.zeros(2)}, "b": {"w": torch.ones(2)}, "c": {"w": torch.full((2,), 7.0)}}
    told = {"0": ({"w": torch.tensor([1.0, 2.0])}, 1), "1": ({"w": torch.tensor([5.0, 6.0])}, 3),
            "2": ({"w": torch.tensor([9.0, 9.0])}, 50)}  # fmt: skip
    found = merge(models, {"0": "a", "1": "a", "2": "b"}, told)
    assert {group: model["w"].tolist() for group, model in found.items()} == {
        "a": [4.0, 5.0],
        "b": [9.0, 9.0],
        "c": [7.0, 7.0],  # nobody of it was there
    }
    assert models["a"]["w"].tolist() == [0.0, 0.0]


def test_means_are_those_of_a_loop() -> None:
    draw, clients = torch.Generator().manual_seed(0), [str(k) for k in range(11)]
    told = {
        k: ({"w": torch.randn(3, 4, generator=draw)}, int(torch.randint(1, 9, (), generator=draw))) for k in clients
    }
    members = {k: group_of(k, {}, 3) for k in clients}
    found = merge({str(g): {"w": torch.zeros(3, 4)} for g in range(3)}, members, told)
    for g in range(3):
        total, weight = torch.zeros(3, 4, dtype=torch.float64), 0
        for k in clients:
            if int(k) % 3 == g:
                total, weight = total + told[k][1] * told[k][0]["w"].double(), weight + told[k][1]
        torch.testing.assert_close(found[str(g)]["w"], (total / weight).float())


def test_groups() -> None:
    assert [group_of(str(k), {}, 3) for k in range(5)] == ["0", "1", "2", "0", "1"]
    assert {group_of(name, {}, groups) for name in ("7", "north") for groups in (0, 1)} == {"0"}
    assert group_of("north", {"north": "sea", "7": "hill"}, 4) == "sea"
    with pytest.raises(UserError, match=r"clustered\.table does not say which group client 'x' is of"):
        group_of("x", {"north": "sea"}, 0)
    with pytest.raises(UserError, match="groups=2 goes by the numbers of clients, and client 'north' has a name"):
        group_of("north", {}, 2)


def test_one_group_is_fedavg_bit_for_bit(federate: Federate) -> None:
    mine, theirs = federate(strategy="clustered", **FEW), federate(strategy="fedavg", **FEW)
    assert {f"group/0/{name}" for name in theirs.state} == mine.state.keys()
    assert all(torch.equal(mine.state[f"group/0/{name}"], tensor) for name, tensor in theirs.state.items())


def test_a_group_for_each_client_is_training_alone(federate: Federate, tmp_path: Path) -> None:
    table = tmp_path / "groups.toml"
    table.write_text("".join(f'{k} = "site/{k}"\n' for k in range(4)))
    mine = federate(strategy="clustered", **FEW, **{"clustered.table": str(table)})
    theirs = federate(strategy="local", **FEW)
    for k in range(4):
        own, other = (load_model(run.path / "model" / f"{k}.safetensors").state_dict() for run in (mine, theirs))
        assert all(torch.equal(own[name], other[name]) for name in other)
        assert torch.equal(own["fc2.weight"], mine.state[f"group/site/{k}/fc2.weight"])


def test_a_round_without_a_group_leaves_it(federate: Federate) -> None:
    runs = [federate(strategy="clustered", groups=4, fraction_train=0.5, **{**FEW, "num_server_rounds": n})
            for n in (1, 2)]  # fmt: skip
    (first, second) = (run.state for run in runs)
    per_round = [{row.client for row in run.rows if row.round == n and row.phase == "after"}
                 for n, run in enumerate(runs, 1)]  # fmt: skip
    for k in range(4):
        same = torch.equal(first[f"group/{k}/fc1.weight"], second[f"group/{k}/fc1.weight"])
        assert same == (str(k) not in {str(client) for client in per_round[1]})


def test_it_goes_on_where_it_was(federate: Federate) -> None:
    given = {"strategy": "clustered", "groups": 2, **FEW}
    whole = federate(**{**given, "num_server_rounds": 3})
    part = federate(**given)
    on = federate(**{**given, "num_server_rounds": 3}, resume=str(part.path))
    assert all(torch.equal(whole.state[name], on.state[name]) for name in whole.state)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (None, "can't be read"),
        ("0 = ", "is not TOML"),
        ("0 = 3", 'has 0 = 3: wanted lines client = "group"'),
        ("", "names no client"),
        ('0 = "a"', "clustered.table does not say which group client '1' is of"),
    ],
)
def test_a_table_that_is_wrong_is_one_sentence(
    federate: Federate, tmp_path: Path, text: str | None, sentence: str
) -> None:
    table = tmp_path / "groups.toml"
    if text is not None:
        table.write_text(text)
    with pytest.raises(UserError, match=sentence):
        federate(strategy="clustered", **FEW, **{"clustered.table": str(table)})
