"""A cohort in several processes: what travels, and that splitting it changes no more than rounding."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import Outcome
from hypothesis import given
from hypothesis import strategies as st
from presets import network_settings

from fedham_flwr.core.parameters import Params
from fedham_flwr.federation import wire
from fedham_flwr.federation.direct import Direct, Reply
from fedham_flwr.federation.messages import ClientFailure, Download, Extras
from fedham_flwr.runners.cohort import CohortGrid
from fedham_flwr.runners.packing import pack, unpack
from fedham_flwr.runners.shards import Shard, ShardedGrid, unwrap, wrap
from fedham_flwr.settings import Value, methods

ROOT = Path(__file__).resolve().parents[1]
FEW: dict[str, Value] = {"num_server_rounds": 2, "samples_per_client": 64, "batch_size": 10}


def tree(seed: int, names: tuple[str, ...] = ("a", "b")) -> Params:
    draw = torch.Generator().manual_seed(seed)
    return {name: torch.randn(2, 3, generator=draw) for name in names} | {"n": torch.tensor(seed)}


def equal(one: Params, other: Params) -> bool:
    return one.keys() == other.keys() and all(torch.equal(tensor, other[name]) for name, tensor in one.items())


# ---- packing -------------------------------------------------------------------------------------------------------


@given(st.lists(st.integers(0, 3), max_size=8))
def test_trees_come_back_as_they_were(seeds: list[int]) -> None:
    trees = [tree(seed) if seed else {} for seed in seeds]
    back = unpack(pickle.loads(pickle.dumps(pack(trees))))
    assert len(back) == len(trees)
    assert all(equal(mine, theirs) for mine, theirs in zip(back, trees, strict=True))


def test_what_several_share_travels_once_and_rows_without_their_neighbours() -> None:
    shared, bank = torch.randn(50, 50), torch.randn(100, 50, 50)
    trees = [{"shared": shared, "row": bank[place]} for place in range(3)]
    packed = pack(trees)
    assert [array.shape for array in packed.arrays] == [(4, 50, 50)]
    assert all(equal(mine, theirs) for mine, theirs in zip(unpack(packed), trees, strict=True))


def test_empty_tensors_and_other_types() -> None:
    trees = [{"none": torch.zeros(0, 3), "count": torch.tensor([1, 2]), "also": torch.zeros(0, 3)}]
    assert equal(unpack(pack(trees))[0], trees[0])


def test_contents_come_back_as_they_were() -> None:
    down = Download(3, tree(1), (1, 8, 8), 10, extras=Extras({"x": torch.ones(2)}, {"place": (4,)}))
    up = Reply("7", tree(2), 64, {"test/global/before/loss": 1.0, "n/test": 4}, {"row": torch.zeros(3)}, True, 2)
    failed = wire.write_failure("the disk is full", simulated=True)
    told, said, refused = unwrap(pickle.loads(pickle.dumps(wrap([Direct(down), Direct(up), failed]))))
    back = wire.read_download(told)
    assert equal(back.params, down.params)
    assert back.extras.facts == {"place": (4,)}
    assert equal(back.extras.tensors, down.extras.tensors)
    upload = wire.read_upload(said, 3)
    assert (upload.client, upload.examples, upload.restarted, upload.age) == ("7", 64, True, 2)
    assert equal(upload.params, up.params)
    with pytest.raises(ClientFailure, match="the disk is full"):
        wire.read_upload(refused, 3)


# ---- runs, with actors in this process -----------------------------------------------------------------------------


class Here(ShardedGrid):
    """Shards that are objects of this process; what passes between is pickled as it would be."""

    def __init__(self, app: object, clients: int) -> None:
        self.chosen: dict[str, Value] = app  # type: ignore[assignment]
        super().__init__(self.chosen, clients, 2)

    def _start(self) -> Any:
        shard = Shard(self._given, self._ids)

        def remote(name: str) -> Any:
            call = lambda *given: getattr(shard, name)(*pickle.loads(pickle.dumps(given)))  # noqa: E731
            return SimpleNamespace(remote=lambda *given: pickle.loads(pickle.dumps(call(*given))))

        return SimpleNamespace(**{name: remote(name) for name in ("work", "write_states", "engine")})

    def _get(self, reference: Any) -> Any:
        return reference


def sharded(federate: Callable[..., Outcome], **given: Any) -> Outcome:
    return federate(grid=Here, client_app=lambda chosen: chosen, **{**FEW, **given})


@pytest.mark.parametrize("strategy", methods())
def test_two_shards_are_one_cohort_to_rounding(federate: Callable[..., Outcome], strategy: str) -> None:
    given = {"strategy": strategy, "clients": 5, "evaluate_every": 1, **network_settings(strategy)}
    whole, parts = federate(grid=CohortGrid, **FEW, **given), sharded(federate, **given)
    assert parts.summary["engine"]["workers"] == 2
    assert [row[:6] for row in parts.rows] == [row[:6] for row in whole.rows]
    for mine, theirs in zip(parts.rows, whole.rows, strict=True):
        assert mine.value == pytest.approx(theirs.value, rel=2e-3, abs=2e-3)
    assert parts.summary["bytes"] == whole.summary["bytes"]


def test_states_are_written_by_those_who_keep_them(federate: Callable[..., Outcome]) -> None:
    run = sharded(federate, strategy="fedper", checkpoint_every=1)
    for folder in ((run.path / "clients"), run.path / "checkpoints" / "round-00002" / "clients"):
        assert {file.name for file in folder.glob("*.safetensors")} == {f"{client}.safetensors" for client in range(4)}


def test_clients_are_dealt_there_and_back_again() -> None:
    grid = Here({"strategy": "local"}, 6)
    assert [grid._owner[node] for node in grid._ids] == [0, 1, 1, 0, 0, 1]


def test_an_actor_that_dies_fails_its_shard_alone(
    federate: Callable[..., Outcome], caplog: pytest.LogCaptureFixture
) -> None:
    import ray

    class Dying(Here):
        def _get(self, reference: Any) -> Any:
            self.pulled = getattr(self, "pulled", 0) + 1
            if self.pulled == 4:  # the second actor, in the first round after the roster's query
                raise ray.exceptions.RayActorError
            return reference

    given = {**FEW, "strategy": "fedavg", "min_replies": 1, "num_server_rounds": 3}
    run = federate(grid=Dying, client_app=lambda chosen: chosen, **given)
    failures = [[failure["client"] for failure in record["failures"]] for record in run.records]
    assert failures == [["1", "2"], [], [], []]
    assert "worker that trained this client died" in run.records[0]["failures"][0]["error"]
    assert "is started again" in caplog.text


# ---- real processes ------------------------------------------------------------------------------------------------

KILLING = """
import json, os, signal, sys
import ray
from fedham_flwr.runners import shards
from fedham_flwr.simulation import simulate


class Killing(shards.ShardedGrid):
    rounds = 0

    def push_messages(self, messages):
        messages = list(messages)
        self.rounds += messages[0].metadata.message_type == "train"
        if self.rounds == 2 and messages[0].metadata.message_type == "train":
            os.kill(ray.get(self._actors[0].pid.remote()), signal.SIGKILL)
        return super().push_messages(messages)


shards.ShardedGrid = Killing
run = simulate(clients=4, backend="cohort", num_cpus=2, **json.loads(sys.argv[1]))
print(run.directory)
"""


def written(chosen: dict[str, Value]) -> dict[str, Value]:
    return {key.replace("_", "-"): value for key, value in chosen.items()}


def ended(command: list[str]) -> Path:
    """The directory of a run that another process made: Ray leaves files open that are none of a test's business."""
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    return Path(done.stdout.splitlines()[-1].removeprefix("results: "))


@pytest.mark.slow
def test_under_ray_it_is_the_same_to_the_bit(
    federate: Callable[..., Outcome], settings: Callable[..., dict[str, Value]]
) -> None:
    chosen = {**FEW, "strategy": "fedham", "model": "digits-cnn", "checkpoint_every": 1}
    here = sharded(federate, **chosen)
    text = " ".join(f"{key}={json.dumps(value)}" for key, value in written(settings(**chosen)).items())
    command = ["run_simulation.py", "--backend", "cohort", "--num-cpus", "2", "--num-supernodes", "4", "-c", text]
    there = ended([str(ROOT / command[0]), *command[1:]])
    summary = json.loads((there / "summary.json").read_text())
    assert summary["digest"] == here.summary["digest"]
    assert summary["engine"]["workers"] == 2
    assert summary["engine"]["alone"] == {}
    assert len(list((there / "clients").glob("*.safetensors"))) == 4


@pytest.mark.slow
def test_a_worker_that_is_killed_fails_its_shard_and_the_run_goes_on(settings: Callable[..., dict[str, Value]]) -> None:
    chosen = {**FEW, "strategy": "fedper", "num_server_rounds": 4, "checkpoint_every": 1, "min_replies": 1}
    run = ended(["-c", KILLING, json.dumps(written(settings(**chosen)))])
    records = [json.loads(line) for line in (run / "rounds.jsonl").read_text().splitlines()]
    assert [len(record["failures"]) for record in records] == [0, 2, 0, 0, 0]
    assert json.loads((run / "summary.json").read_text())["num-rounds"] == 4
