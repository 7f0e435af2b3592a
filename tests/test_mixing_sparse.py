"""Mixing weights that are 0 are not stored: what is read is what was, of parts of today and of before."""

from __future__ import annotations

import itertools
import resource
import signal
from collections.abc import Sequence
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedham_flwr.core.records import MixingWeights
from fedham_flwr.reporting import mixing_sample, mixing_weights
from fedham_flwr.reporting.mixing_plots import self_weight_curves
from fedham_flwr.reporting.mixing_sample import sample
from fedham_flwr.reporting.mixing_weights import clients_of, latest, read_weights, self_weights, write_weights

GROUPS = ("conv", "fc")


def make(clients: Sequence[str], peers: Sequence[str], seed: int = 0, top: int = 0) -> MixingWeights:
    draw = torch.Generator().manual_seed(seed)
    weights = torch.rand(len(clients), len(GROUPS), len(peers), generator=draw) + 0.01
    if top:
        weights = torch.where(weights >= weights.topk(min(top, len(peers))).values[..., -1:], weights, 0.0)
    return MixingWeights(tuple(clients), GROUPS, tuple(peers), weights / weights.sum(-1, keepdim=True))


def sparse(weights: MixingWeights) -> MixingWeights:
    """The same by places, in no order, with one weight of 0 that repeats a place."""
    most = int((weights.weights != 0).sum(-1).max())
    values, places = weights.weights.topk(most)
    values, places = (
        torch.cat([values, torch.zeros_like(values[..., :1])], -1),
        torch.cat([places, places[..., :1]], -1),
    )
    return MixingWeights(weights.clients, weights.groups, weights.peers, values, places)


def write_as_before(run: Path, number: int, kind: str, weights: MixingWeights) -> None:
    """A part with a row for every weight, as they were once."""
    n, groups, peers = weights.weights.shape

    def words(names: tuple[str, ...], numbers: np.ndarray) -> pa.DictionaryArray:
        return pa.DictionaryArray.from_arrays(pa.array(numbers, pa.int32()), pa.array(names, pa.string()))

    table = pa.table(
        {
            "round": pa.array(np.full(n * groups * peers, number, dtype=np.int64)),
            "client": words(weights.clients, np.repeat(np.arange(n), groups * peers)),
            "group": words(weights.groups, np.tile(np.repeat(np.arange(groups), peers), n)),
            "peer": words(weights.peers, np.tile(np.arange(peers), n * groups)),
            "weight": weights.weights.float().numpy().reshape(-1),
        }
    )
    (run / "mixing").mkdir(exist_ok=True)
    pq.write_table(table, run / "mixing" / f"round-{number:05d}-{kind}.parquet")


def new_run(top: Path, name: str = "run") -> Path:
    (top / name / "metrics").mkdir(parents=True)
    return top / name


def same(one: MixingWeights, other: MixingWeights) -> bool:
    names = [(w.clients, w.groups, w.peers) for w in (one, other)]
    return names[0] == names[1] and torch.equal(one.dense(), other.dense())


# ---- what is stored -------------------------------------------------------------------------------------------------


def test_weights_of_0_have_no_row_but_those_of_a_client_of_itself(tmp_path: Path) -> None:
    run = new_run(tmp_path)
    given = torch.tensor([[[0.0, 1.0, 0.0], [0.5, 0.5, 0.0]], [[0.0, 0.25, 0.75], [0.0, 0.0, 1.0]]])
    write_weights(run, 3, "train", MixingWeights(("a", "z"), GROUPS, ("a", "b", "c"), given))
    assert [tuple(row.values()) for row in read_weights(run).to_pylist()] == [
        (3, "a", "conv", "a", 0.0), (3, "a", "conv", "b", 1.0), (3, "a", "fc", "a", 0.5), (3, "a", "fc", "b", 0.5),
        (3, "z", "conv", "b", 0.25), (3, "z", "conv", "c", 0.75), (3, "z", "fc", "c", 1.0),
    ]  # fmt: skip


@given(
    cohorts=st.lists(st.sets(st.integers(0, 11), min_size=1), min_size=1, max_size=4),
    top=st.integers(0, 4), seed=st.integers(0, 99), rows=st.sampled_from([1, 50, 10_000]),
    forms=st.lists(st.sampled_from(["before", "dense", "sparse"]), min_size=4, max_size=4),
    some=st.sets(st.integers(0, 11), min_size=1), columns=st.sets(st.integers(0, 11), min_size=1),
)  # fmt: skip
def test_what_is_read_is_what_was_read_of_parts_of_before(
    tmp_path_factory: pytest.TempPathFactory,
    cohorts: list[set[int]],
    top: int,
    seed: int,
    rows: int,
    forms: list[str],
    some: set[int],
    columns: set[int],
) -> None:
    folder, peers = tmp_path_factory.mktemp("runs"), [str(i) for i in range(10)]  # 10 and 11 are nobody's peers
    old, new = new_run(folder, "old"), new_run(folder, "new")
    last: dict[str, torch.Tensor] = {}
    for number, cohort in enumerate(cohorts):
        weights = make([str(i) for i in sorted(cohort)], peers, seed + number, top)
        write_as_before(old, number, "train", weights)
        last |= dict(zip(weights.clients, weights.weights, strict=True))
        if forms[number] == "before":
            write_as_before(new, number, "train", weights)
            continue
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(mixing_weights, "ROWS", rows)
            write_weights(new, number, "train", sparse(weights) if forms[number] == "sparse" else weights)
    found = latest(new)
    assert found.clients == tuple(sorted(last, key=int))
    assert found.peers == tuple(peers), "a peer to whom nobody gives weight is lost"
    assert torch.equal(found.weights, torch.stack([last[client] for client in found.clients]))
    for source in (read_weights(new), read_weights(old), old):
        assert same(latest(source), found)
    ours, theirs = self_weights(new), self_weights(read_weights(old))
    assert (ours.groups, ours.rounds.tolist(), ours.peers) == (theirs.groups, theirs.rounds.tolist(), theirs.peers)
    assert np.allclose(ours.means, theirs.means, atol=1e-7, equal_nan=True)
    assert clients_of(new) == clients_of(old) == found.clients
    part = latest(new, clients=[str(i) for i in some], peers=[str(i) for i in columns])
    chosen = [at for at, client in enumerate(found.clients) if int(client) in some]
    seen = [at for at, peer in enumerate(found.peers) if int(peer) in columns]
    assert part.clients == tuple(found.clients[at] for at in chosen)
    if chosen:
        assert part.peers == tuple(found.peers[at] for at in seen)
        assert torch.equal(part.weights, found.weights[chosen][:, :, seen])


def test_the_newest_part_of_a_client_holds_alone(tmp_path: Path) -> None:
    """Not one of its weights that are 0 there is taken from a part before, though the round is the same."""
    run = new_run(tmp_path)
    for kind, peer in (("adapt", 0), ("train", 1)):
        weights = torch.eye(3)[peer].expand(1, 2, 3)
        write_weights(run, 1, kind, MixingWeights(("c",), GROUPS, ("a", "b", "c"), weights))
    assert latest(run).weights[0, 0].tolist() == [0.0, 1.0, 0.0]


def test_names_of_many_peers_outlive_the_part(tmp_path: Path) -> None:
    run = new_run(tmp_path)
    peers = tuple(f"{'hospital' * 7}{i:06d}" for i in range(30_000))  # 1.9 MB of names, of which 60 have a row
    weights = torch.zeros(30, 2, 30_000)
    weights[torch.arange(30), :, torch.arange(30) * 900] = 1.0
    path = write_weights(run, 1, "train", MixingWeights(peers[:30], GROUPS, peers, weights))
    assert len(latest(run).peers) == self_weights(run).peers == 30_000
    assert path.stat().st_size < 600_000
    assert len(read_weights(run)) == 60 + 60 - 2


@pytest.mark.parametrize(("top", "least"), [(10, 5), (0, 1.2)])
def test_a_part_is_much_smaller_than_before(tmp_path: Path, top: int, least: float) -> None:
    peers = [str(i) for i in range(1000)]
    weights = make(peers[::5], peers, top=top)
    old, new = new_run(tmp_path, "old"), new_run(tmp_path, "new")
    write_as_before(old, 1, "train", weights)
    path = write_weights(new, 1, "train", weights)
    before = (old / "mixing" / path.name).stat().st_size
    assert before / path.stat().st_size > least
    assert same(latest(new), latest(old))
    assert len(read_weights(new)) <= 200 * 2 * (top + 1 if top else 1000)


def test_a_disk_that_is_full_leaves_no_part(tmp_path: Path) -> None:
    run, peers = new_run(tmp_path), [str(i) for i in range(300)]

    def work() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (65536, 65536))
        with pytest.raises(OSError, match="File too large"):
            write_weights(run, 2, "train", make(peers, peers))

    write_weights(run, 1, "train", make(["1"], peers))
    process = get_context("fork").Process(target=work)
    process.start()
    process.join()
    assert process.exitcode == 0
    assert [file.name for file in (run / "mixing").iterdir()] == ["round-00001-train.parquet"]


def test_places_that_do_not_fit_are_refused() -> None:
    weights = torch.zeros(1, 2, 1)
    for places, why in (
        (torch.zeros(1, 2, 2, dtype=torch.int64), r"weights and places have shapes \(1, 2, 1\), \(1, 2, 2\)"),
        (torch.full((1, 2, 1), 3), "places are from 0 to 2, and one is not"),
        (torch.full((1, 2, 1), -1), "places are from 0 to 2, and one is not"),
    ):
        with pytest.raises(ValueError, match=why):
            MixingWeights(("a",), GROUPS, ("a", "b", "c"), weights, places)
    with pytest.raises(ValueError, match="wanted both clients, groups, weights of each"):
        MixingWeights(("a", "b"), GROUPS, ("a", "b", "c"), weights, torch.zeros(1, 2, 1, dtype=torch.int64))


# ---- which are shown ------------------------------------------------------------------------------------------------


def test_few_clients_are_all_shown(tmp_path: Path) -> None:
    run, peers = new_run(tmp_path), [str(i) for i in range(mixing_sample.MOST)]
    assert sample(run, 0) is None
    assert self_weight_curves(run, tmp_path / "curves.png") is None
    write_weights(run, 1, "train", make(peers, peers))
    shown = sample(run, 0)
    assert shown is not None
    assert same(shown[0], latest(run))
    assert shown[1] == ""


@pytest.mark.parametrize("top", [0, 10])
def test_of_many_some_are_drawn_and_those_to_whom_they_listen(tmp_path: Path, top: int) -> None:
    run, ids = new_run(tmp_path), [f"site-{i}" for i in range(400)]
    weights = make(ids, ids, top=top)
    write_weights(run, 1, "train", weights)
    shown, note = sample(run, 0) or pytest.fail("nothing")
    assert note == "60 of 400 clients: 12 drawn and the 48 to whom these give most weight"
    assert len(shown.clients) == 60
    assert shown.clients == shown.peers
    rows = [ids.index(client) for client in shown.clients]
    assert torch.equal(shown.weights, weights.weights[rows][:, :, rows])
    # Of no choice of 12 and the 48 to whom these give most weight may one be left out that was drawn.
    again, _ = sample(run, 0) or pytest.fail("nothing")
    other, _ = sample(run, 1) or pytest.fail("nothing")
    assert same(shown, again)
    assert set(shown.clients) != set(other.clients)
    drawn = mixing_sample.stream(0, "pictured").permutation(400)[:12].tolist()
    names = latest(run).clients
    first = [ids.index(names[place]) for place in drawn]
    total = weights.weights[first].sum((0, 1))
    total[first] = 0.0
    assert set(rows) == {*first, *total.topk(48).indices.tolist()}


def test_those_who_listen_to_each_other_stand_together(tmp_path: Path) -> None:
    run, ids = new_run(tmp_path), [str(i) for i in range(90)]
    weights = torch.zeros(90, 2, 90)
    for client in range(90):  # three circles, whose clients have numbers of all sizes
        weights[client, :, client % 3 :: 3] = 1 / 30
    write_weights(run, 1, "train", MixingWeights(tuple(ids), GROUPS, tuple(ids), weights))
    shown, _ = sample(run, 0) or pytest.fail("nothing")
    circles = [int(client) % 3 for client in shown.clients]
    assert sum(one != other for one, other in itertools.pairwise(circles)) == len(set(circles)) - 1


def test_of_few_clients_and_many_peers_the_heaviest_peers_are_shown(tmp_path: Path) -> None:
    run, ids = new_run(tmp_path), [str(i) for i in range(200)]
    write_weights(run, 1, "train", make(ids[:7], ids))
    shown, note = sample(run, 0) or pytest.fail("nothing")
    assert (shown.clients, len(shown.peers), note) == (tuple(ids[:7]), 60, "60 of 200 peers")
    assert set(ids[:7]) < set(shown.peers)


def test_clients_who_listen_to_none_but_themselves_are_drawn(tmp_path: Path) -> None:
    run, ids = new_run(tmp_path), [str(i) for i in range(200)]
    write_weights(
        run, 1, "train", MixingWeights(tuple(ids), GROUPS, tuple(ids), torch.eye(200)[:, None].expand(-1, 2, -1))
    )
    shown, note = sample(run, 0) or pytest.fail("nothing")
    assert (len(shown.clients), note) == (60, "60 of 200 clients: 60 drawn")
    assert torch.equal(shown.weights[:, 0], torch.eye(60))
