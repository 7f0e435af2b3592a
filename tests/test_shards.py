"""A cohort in several processes: splitting it changes no more than rounding, and nothing is lost with a process."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar, cast

import pytest
from conftest import Outcome
from flwr.app import Message
from presets import network_settings

from fedham_flwr.core.errors import UserError
from fedham_flwr.runners import cohort
from fedham_flwr.runners.actors import WorkerDiedError
from fedham_flwr.runners.cohort import CohortGrid
from fedham_flwr.runners.packing import States
from fedham_flwr.runners.placing import Workers
from fedham_flwr.runners.shards import RESTARTING, ShardedGrid
from fedham_flwr.runners.worker import Shard
from fedham_flwr.settings import Value, methods

ROOT = Path(__file__).resolve().parents[1]
FEW: dict[str, Value] = {"num_server_rounds": 2, "samples_per_client": 64, "batch_size": 10}

DEAD: Any = object()
LATE: Any = object()


class Here(ShardedGrid):
    """Shards that are objects of this process; what passes between is copied."""

    home: ClassVar[str | None] = None
    """Another than "" stands for another machine, which sees none of the files here."""

    def __init__(self, app: object, clients: int) -> None:
        self.chosen: dict[str, Value] = app  # type: ignore[assignment]
        self.shards: list[Shard] = []
        self.asked: list[tuple[int, tuple[int, ...], int]] = []  # actor, clients, values of states that travel
        super().__init__(self.chosen, clients, Workers(2))

    def _start(self) -> Any:
        shard = Shard(self._given, self._ids, self.home)
        self.shards.append(shard)

        def remote(name: str) -> Any:
            call = lambda *given: copy.deepcopy(getattr(shard, name)(*copy.deepcopy(given)))  # noqa: E731
            return SimpleNamespace(remote=call, options=lambda num_returns: SimpleNamespace(remote=call))

        return SimpleNamespace(**{name: remote(name) for name in ("work", "engine", "hello")})

    def _ask(self, number: int, messages: Sequence[Message]) -> Any:
        honest = self._kept.bring

        def bring(nodes: Sequence[int], *given: Any) -> Any:
            found = honest(nodes, *given)
            self.asked.append((number, tuple(self._ids.index(node) for node in nodes), len(found[2])))
            return found

        self._kept.bring = bring  # type: ignore[method-assign]
        try:
            return super()._ask(number, messages)
        finally:
            self._kept.bring = honest  # type: ignore[method-assign]

    def _get(self, reference: Any, end: float | None = None) -> Any:
        if reference is DEAD:
            raise WorkerDiedError("killed")
        return reference


class Dying(Here):
    """The second actor dies with its work done, so often, in the second round."""

    deaths = 1

    def _ask(self, number: int, messages: Sequence[Message]) -> Any:
        found = super()._ask(number, messages)
        told = messages[0].metadata
        if number == 1 and told.group_id == "2" and told.message_type == "train" and self.deaths:
            self.deaths -= 1
            return DEAD, DEAD, DEAD
        return found


class DyingTwice(Dying):
    deaths = 2


class Burning(Dying):
    """With the actor goes its machine, and what that had of the object store."""

    lost: Any = None

    def _ask(self, number: int, messages: Sequence[Message]) -> Any:
        found = super()._ask(number, messages)
        if found[0] is DEAD:
            self.lost = [latest.states for latest in self._kept._latest.values() if latest.worker == 1]
        return found

    def _get(self, reference: Any, end: float | None = None) -> Any:
        if isinstance(reference, States) and any(reference is states for states in self.lost or []):
            raise WorkerDiedError("lost")
        return super()._get(reference, end)


class Crowded(Dying):
    """There is no room for the actor any more."""

    deaths = 100

    def _greet(self, some: Sequence[Any], within: float) -> list[Any]:
        if within == RESTARTING:
            raise UserError("a worker was not there")
        return super()._greet(some, within)


class Away(Here):
    """Actors that do not see the files of this machine."""

    home = "elsewhere"


class Raising(Here):
    """The app of the second actor raises for its first client, which `make_client_app` never lets it do."""

    def _start(self) -> Any:
        started = super()._start()
        shard = self.shards[-1]
        if len(self.shards) == 2:
            honest, first = shard._grid._client_app, self._ids[1]

            def app(message: Message, context: Any) -> Message:
                if message.metadata.dst_node_id == first and message.metadata.message_type == "train":
                    raise RuntimeError("out of file handles")
                return honest(message, context)

            shard._grid._client_app = app  # type: ignore[assignment]
        return started


class Slow(Here):
    """The second actor is not done with the second round until later."""

    def _ask(self, number: int, messages: Sequence[Message]) -> Any:
        found, told = super()._ask(number, messages), messages[0].metadata
        slow = number == 1 and (told.group_id, told.message_type) == ("2", "train")
        return (LATE, *found[1:]) if slow else found

    def _get(self, reference: Any, end: float | None = None) -> Any:
        if reference is LATE:
            raise TimeoutError
        return super()._get(reference, end)


def sharded(federate: Callable[..., Outcome], grid: Any = Here, **given: Any) -> Outcome:
    return federate(grid=grid, client_app=lambda chosen: chosen, **{**FEW, **given})


@pytest.mark.parametrize("strategy", methods())
def test_two_shards_are_one_cohort_to_rounding(federate: Callable[..., Outcome], strategy: str) -> None:
    given = {"strategy": strategy, "clients": 3, "evaluate_every": 1, **network_settings(strategy)}
    whole, parts = federate(grid=CohortGrid, **FEW, **given), sharded(federate, **given)
    assert parts.summary["engine"]["workers"] == 2
    assert [row[:6] for row in parts.rows] == [row[:6] for row in whole.rows]
    for mine, theirs in zip(parts.rows, whole.rows, strict=True):
        assert mine.value == pytest.approx(theirs.value, rel=2e-3, abs=2e-3)
    assert parts.summary["bytes"] == whole.summary["bytes"]


def test_noise_is_added_where_the_clients_are(federate: Callable[..., Outcome]) -> None:
    run = sharded(federate, strategy="fedavg", **{"dp.epsilon": 50.0, "dp.clipping-norm": 0.01})
    assert run.summary["failures"] == 0
    assert run.summary["privacy"]


@pytest.mark.parametrize("grid", [Here, Away])
def test_states_and_models_are_in_the_runs_directory(federate: Callable[..., Outcome], grid: Any) -> None:
    run = sharded(federate, grid, strategy="fedper", checkpoint_every=1)
    names = {f"{client}.safetensors" for client in range(4)}
    for folder in ("clients", "checkpoints/round-00002/clients", "model"):
        assert {file.name for file in (run.path / folder).glob("*.safetensors")} == names, folder
    assert run.summary["digest"] == sharded(federate, strategy="fedper", checkpoint_every=1).summary["digest"]


@pytest.mark.parametrize("grid", [Here, Away])
def test_a_run_goes_on_from_a_checkpoint_to_the_bit(
    federate: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch, grid: Any
) -> None:
    given = {"strategy": "fedper", "num_server_rounds": 3, "checkpoint_every": 1, "fraction_train": 0.75}
    whole = sharded(federate, grid, **given)
    honest, asked = grid.push_messages, []

    def interrupt(self: ShardedGrid, messages: Any) -> Any:
        messages = list(messages)
        asked.extend(m for m in messages[:1] if m.metadata.group_id == "3")
        if asked:
            raise KeyboardInterrupt
        return honest(self, messages)

    monkeypatch.setattr(grid, "push_messages", interrupt)
    with pytest.raises(KeyboardInterrupt):
        sharded(federate, grid, **given)
    monkeypatch.setattr(grid, "push_messages", honest)
    (path,) = {each.parent.parent for each in whole.path.parent.glob("*/checkpoints/round-00002")} - {whole.path}
    again = sharded(federate, grid, **given, resume=str(path))
    assert again.summary["digest"] == whole.summary["digest"]


def test_a_client_that_another_worker_trains_goes_on_from_what_it_kept(federate: Callable[..., Outcome]) -> None:
    """Cohorts of three of six on two workers: some round has two of one owner more than of the other."""
    given = {"strategy": "fedper", "clients": 6, "fraction_train": 0.5, "num_server_rounds": 6, "local_epochs": 2}
    run, alone = sharded(federate, **given), federate(**FEW | given)
    grid: Any = run.grid
    assert sum(brought for _, _, brought in grid.asked) > 0
    for mine, theirs in zip(run.rows, alone.rows, strict=True):
        assert mine.value == pytest.approx(theirs.value, rel=5e-3, abs=5e-3)


def test_actors_that_keep_nothing_are_told_what_their_clients_keep(
    federate: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    given = {"strategy": "fedham", "num_server_rounds": 3, "checkpoint_every": 3}
    honest = sharded(federate, **given)
    monkeypatch.setattr(cohort, "MOST_HELD", 0)
    run = sharded(federate, **given)
    assert run.summary["digest"] == honest.summary["digest"]
    grid: Any = run.grid
    brought = [count for _, _, count in grid.asked]
    assert sum(brought) > sum(count for _, _, count in cast(Any, honest.grid).asked)
    assert len(list((run.path / "clients").glob("*.safetensors"))) == 4


def test_an_actor_that_dies_once_changes_nothing(federate: Callable[..., Outcome], caplog: Any) -> None:
    """Its clients go on from what they kept, which was handed over: to the bit."""
    given = {"strategy": "fedper", "num_server_rounds": 4}
    honest, run = sharded(federate, **given), sharded(federate, Dying, **given)
    assert run.summary["digest"] == honest.summary["digest"]
    assert run.summary["failures"] == 0
    assert "a worker of the cohort died, and is started again: killed" in caplog.text


def test_an_actor_that_dies_twice_fails_its_shard_alone(federate: Callable[..., Outcome]) -> None:
    run = sharded(federate, DyingTwice, strategy="fedper", min_replies=1, num_server_rounds=4)
    failures = [[failure["client"] for failure in record["failures"]] for record in run.records]
    assert failures == [[], ["1", "2"], [], [], []]
    assert "worker that trained this client died" in run.records[1]["failures"][0]["error"]
    assert [record["restarted"] for record in run.records] == [[]] * 5


def test_what_an_app_raises_fails_its_client_alone(federate: Callable[..., Outcome]) -> None:
    run = sharded(federate, Raising, strategy="fedper", num_server_rounds=1)
    failures = [[failure["client"] for failure in record["failures"]] for record in run.records]
    assert failures == [["1"], []]
    assert "RuntimeError: out of file handles" in run.records[0]["failures"][0]["error"]


def test_where_there_is_no_room_for_an_actor_the_others_do_its_work(
    federate: Callable[..., Outcome], caplog: Any
) -> None:
    given = {"strategy": "fedper", "num_server_rounds": 4, "fraction_train": 0.75}
    honest, run = sharded(federate, **given), sharded(federate, Crowded, **given)
    assert run.summary["failures"] == 0
    assert [record["restarted"] for record in run.records] == [[]] * 5
    assert run.summary["engine"]["workers"] == 1
    assert "the others train its clients from now on: a worker was not there" in caplog.text
    for mine, theirs in zip(run.rows, honest.rows, strict=True):
        assert mine.value == pytest.approx(theirs.value, rel=5e-3, abs=5e-3)


@pytest.mark.parametrize("checkpoint_every", [1, 0])
def test_what_goes_with_a_machine_starts_from_the_last_checkpoint(
    federate: Callable[..., Outcome], checkpoint_every: int
) -> None:
    given = {"strategy": "fedper", "num_server_rounds": 3, "checkpoint_every": checkpoint_every}
    run = sharded(federate, Burning, lost_state="restart", **given)
    assert run.summary["failures"] == 0
    restarted = [record["restarted"] for record in run.records]
    assert restarted == ([[]] * 4 if checkpoint_every else [[], ["1", "2"], [], []])


def test_a_worker_that_is_late_is_not_waited_for_and_what_its_clients_kept_counts(
    federate: Callable[..., Outcome], caplog: Any
) -> None:
    run = sharded(federate, Slow, strategy="fedper", min_replies=1, num_server_rounds=3, checkpoint_every=3)
    assert [len(record["failures"]) for record in run.records] == [0, 2, 0, 0]
    assert "no reply (round-timeout=" in run.records[1]["failures"][0]["error"]
    assert "a worker is not done with its 2 clients within round-timeout" in caplog.text
    assert len(list((run.path / "clients").glob("*.safetensors"))) == 4


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
            os.kill(ray.get(self._actors[0].hello.remote()).pid, signal.SIGKILL)
        return super().push_messages(messages)


shards.ShardedGrid = Killing
run = simulate(clients=4, backend="ray", num_workers=2, **json.loads(sys.argv[1]))
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
    command = ["run_simulation.py", "--num-workers", "2", "--num-supernodes", "4", "-c", text]
    there = ended([str(ROOT / command[0]), *command[1:]])
    summary = json.loads((there / "summary.json").read_text())
    assert summary["digest"] == here.summary["digest"]
    assert summary["engine"]["workers"] == 2
    assert summary["engine"]["alone"] == {}
    assert len(list((there / "clients").glob("*.safetensors"))) == 4


@pytest.mark.slow
def test_a_worker_that_is_killed_does_its_shard_again_and_nothing_changes(
    federate: Callable[..., Outcome], settings: Callable[..., dict[str, Value]]
) -> None:
    chosen = {**FEW, "strategy": "fedper", "model": "digits-cnn", "num_server_rounds": 4, "checkpoint_every": 0}
    here = sharded(federate, **chosen)
    run = ended(["-c", KILLING, json.dumps(written(settings(**chosen)))])
    records = [json.loads(line) for line in (run / "rounds.jsonl").read_text().splitlines()]
    assert [len(record["failures"]) for record in records] == [0, 0, 0, 0, 0]
    assert json.loads((run / "summary.json").read_text())["digest"] == here.summary["digest"]
