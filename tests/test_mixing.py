"""Mixing weights as results: parts that come back as they were, the last weights of each client, and self weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedham_flwr.core.errors import UserError
from fedham_flwr.core.records import MixingWeights
from fedham_flwr.reporting.mixing_weights import latest, read_weights, self_weights, write_weights

GROUPS = ("conv", "fc")


def make(clients: tuple[str, ...], peers: tuple[str, ...], seed: int = 0) -> MixingWeights:
    drawn = torch.rand(len(clients), len(GROUPS), len(peers), generator=torch.Generator().manual_seed(seed))
    return MixingWeights(clients, GROUPS, peers, drawn / drawn.sum(-1, keepdim=True))


@pytest.fixture
def run(tmp_path: Path) -> Path:
    (tmp_path / "metrics").mkdir()
    return tmp_path


def test_a_part_holds_every_weight_once_in_order(run: Path) -> None:
    weights = make(("3", "1"), ("1", "2", "3"))
    path = write_weights(run, 7, "train", weights)
    assert path == run / "mixing" / "round-00007-train.parquet"
    rows = read_weights(run).to_pylist()
    assert [tuple(row)[:5] for row in rows] == [("round", "client", "group", "peer", "weight")] * 12
    wanted = [
        (7, client, group, peer, weights.weights[i, g, j].item())
        for i, client in enumerate(("3", "1"))
        for g, group in enumerate(GROUPS)
        for j, peer in enumerate(("1", "2", "3"))
    ]
    assert [tuple(row.values()) for row in rows] == wanted
    assert [file.name for file in path.parent.iterdir()] == [path.name]  # and no temporary one


def test_parts_follow_each_other_and_one_written_again_replaces_the_first(run: Path) -> None:
    for number, seed in ((2, 1), (1, 2), (2, 3)):
        write_weights(run, number, "train", make(("a",), ("a", "b"), seed))
    write_weights(run, 2, "evaluate", make(("b",), ("a", "b")))
    table = read_weights(run)
    assert table["round"].to_pylist() == [1] * 4 + [2] * 8
    assert table["client"].to_pylist() == ["a"] * 4 + ["b"] * 4 + ["a"] * 4
    last = table["weight"].to_numpy()[8:].reshape(2, 2)
    assert np.array_equal(last, make(("a",), ("a", "b"), 3).weights[0].numpy())


def test_a_method_without_weights_has_an_empty_table_of_the_same_columns(run: Path) -> None:
    table = read_weights(run)
    assert len(table) == 0
    write_weights(run, 1, "train", make(("a",), ("a", "b")))
    assert table.schema.equals(read_weights(run).schema)
    names = "dictionary<values=string, indices=int32, ordered=0>"
    assert [(field.name, str(field.type)) for field in table.schema] == [
        ("round", "int64"), ("client", names), ("group", names), ("peer", names), ("weight", "float"),
    ]  # fmt: skip


def test_another_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is not the directory of a run: it has no folder 'metrics'"):
        read_weights(tmp_path)


def test_weights_of_another_shape_are_refused() -> None:
    with pytest.raises(
        ValueError, match=r"weights have shape \(1, 2, 3\), wanted clients, groups, peers = \(1, 2, 2\)"
    ):
        MixingWeights(("a",), GROUPS, ("a", "b"), torch.zeros(1, 2, 3))


def test_the_last_weights_of_absent_clients_are_older_and_a_latecomer_had_none_before(run: Path) -> None:
    first = make(("10", "2"), ("10", "2"))
    second = make(("2", "late"), ("10", "2", "late"), seed=1)
    write_weights(run, 1, "train", first)
    write_weights(run, 2, "train", second)
    found = latest(read_weights(run))
    assert found.clients == found.peers == ("2", "10", "late")
    assert found.groups == GROUPS
    # client 10 was last seen in round 1, when nobody knew of the latecomer
    assert torch.equal(found.weights[1], torch.cat([first.weights[0][:, [1, 0]], torch.zeros(2, 1)], dim=1))
    assert torch.equal(found.weights[0], second.weights[0][:, [1, 0, 2]])
    assert torch.equal(found.weights[2], second.weights[1][:, [1, 0, 2]])


@given(cohorts=st.lists(st.sets(st.sampled_from("abcd"), min_size=1), min_size=1, max_size=4), seed=st.integers(0, 99))
def test_self_weights_are_those_of_the_naive_loop(
    tmp_path_factory: pytest.TempPathFactory, cohorts: list[set[str]], seed: int
) -> None:
    run = tmp_path_factory.mktemp("run")
    (run / "metrics").mkdir()
    wanted = np.zeros((2, len(cohorts)))
    for number, cohort in enumerate(cohorts):
        weights = make(tuple(sorted(cohort)), tuple("abcd"), seed + number)
        write_weights(run, number + 1, "train", weights)
        for g in range(2):
            own = [weights.weights[i, g, "abcd".index(c)].item() for i, c in enumerate(weights.clients)]
            wanted[g, number] = sum(own) / len(own)
    for source in (read_weights(run), run):
        groups, rounds, means, peers = self_weights(source)
        assert groups == GROUPS
        assert rounds.tolist() == list(range(1, len(cohorts) + 1))
        assert np.allclose(means, wanted, atol=1e-7)
        assert peers == 4
