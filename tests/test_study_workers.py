"""The worker processes of a study: what one run leaves for the next, runs that are ended, workers that die. Slow."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from studies import STUDY, WAIT, children, gone

from fedham_flwr.core.errors import UserError
from fedham_flwr.simulation import simulate
from fedham_flwr.study import process
from fedham_flwr.study.plan import read_plan
from fedham_flwr.study.planned import Plan
from fedham_flwr.study.pool import LocalPool
from fedham_flwr.study.runs import RunResult

pytestmark = pytest.mark.slow


@pytest.fixture
def pool() -> Iterator[LocalPool]:
    made = LocalPool(1)
    yield made
    made.close()


def ended(pool: LocalPool, stop_at: int | None = None) -> RunResult:
    """The end of the run that is going on; one that tunes is told to end after a step, or never."""
    while True:
        for event in pool.events(WAIT):
            if event.kind == "step" and stop_at is not None:
                pool.answer(event.key, event.round == stop_at)
            if event.kind == "ended":
                assert event.result is not None
                return event.result
            assert event.kind != "died", event.error


@pytest.fixture(scope="module")
def planned(tmp_path_factory: pytest.TempPathFactory) -> Plan:
    file = tmp_path_factory.mktemp("plan") / "small.toml"
    file.write_text(STUDY)
    return read_plan(file)


def directory(folder: Path, result: RunResult) -> dict[str, Any]:
    assert result.directory is not None
    return dict(json.loads((folder / result.directory / "summary.json").read_text()))


def test_a_worker_leaves_nothing_of_one_run_for_the_next(tmp_path: Path, planned: Plan, pool: LocalPool) -> None:
    first, other = (planned.report_spec(method, "digits", 0, {}) for method in ("fedper", "local"))
    found = []
    for number, spec in enumerate([first, other, first]):
        pool.submit(spec, tmp_path / str(number))
        result = ended(pool)
        assert result.state == "complete"
        found.append(directory(tmp_path / str(number), result)["digest"])
    settings: dict[str, Any] = {**first.settings, "results_dir": tmp_path / "alone"}
    alone = simulate(clients=first.clients, backend="cohort", verbose=False, **settings)
    assert found[0] == found[2] == alone.summary["digest"] != found[1]
    printed = (tmp_path / "0" / "run.log").read_text()
    assert "round 4/4" in printed
    assert "results: " in printed


def test_a_run_ends_at_the_step_that_decides_it(tmp_path: Path, planned: Plan, pool: LocalPool) -> None:
    spec = planned.tuning_spec("fedper", "digits", 1000, 0, {})
    pool.submit(spec, tmp_path)
    result = ended(pool, 2)
    assert (result.state, [number for number, _ in result.steps]) == ("pruned", [1, 2])
    assert result.metric == "accuracy"
    assert "Stopped" in directory(tmp_path, result)["error"]
    # wanted whole after all: it goes on from its checkpoint, and is what it would have been
    pool.submit(spec, tmp_path)
    again = ended(pool, 0)
    assert again.state == "complete"
    assert again.steps[:2] == result.steps
    assert len(again.steps) == 5
    pool.submit(spec, tmp_path / "new")
    new = ended(pool, 0)
    assert new.steps == again.steps
    assert directory(tmp_path, again)["digest"] == directory(tmp_path / "new", new)["digest"]


def test_a_run_whose_end_nobody_took_down_ends_the_same_again(tmp_path: Path, planned: Plan, pool: LocalPool) -> None:
    found = []
    for _ in range(2):
        pool.submit(planned.report_spec("local", "digits", 0, {}), tmp_path)
        result = ended(pool)
        found.append((result.state, result.steps, result.directory, directory(tmp_path, result)["digest"]))
    assert found[0] == found[1]
    assert found[0][0] == "complete"


def test_a_worker_that_cannot_be_started_is_a_sentence(tmp_path: Path, planned: Plan, monkeypatch: Any) -> None:
    (tmp_path / "start.py").write_text("raise SystemExit('no torch here')")
    monkeypatch.setattr(process, "START", tmp_path / "start.py")
    pool = LocalPool(1)
    pool.submit(planned.report_spec("local", "digits", 0, {}), tmp_path)
    with pytest.raises(UserError, match=r"cannot be started: .* the exit code 1: no torch here"):
        pool.events(WAIT)
    pool.close()


@pytest.mark.parametrize("ready", [False, True])
def test_a_run_that_is_ended_leaves_no_process_and_its_place_to_another(
    tmp_path: Path, planned: Plan, pool: LocalPool, ready: bool
) -> None:
    spec = planned.report_spec("local", "digits", 0, {})
    pool.submit(spec, tmp_path)
    while ready and not pool.events(WAIT):
        pass
    process = pool._all[0]._process.pid
    pool.end(spec.key)
    assert gone({process})
    pool.submit(spec, tmp_path)
    assert ended(pool).state == "complete"


def test_a_killed_worker_is_told_with_its_run(tmp_path: Path, planned: Plan, pool: LocalPool) -> None:
    spec = planned.report_spec("local", "digits", 0, {})
    pool.submit(spec, tmp_path)
    while not (told := pool.events(WAIT)):
        pass
    assert told[0].key == spec.key
    os.kill(*children(os.getpid()) & {pool._all[0]._process.pid}, signal.SIGKILL)
    while told[-1].kind != "died":
        told += pool.events(WAIT)
    assert told[-1].error == "its process was ended by SIGKILL, as when memory runs out"
    pool.submit(spec, tmp_path)
    assert ended(pool).state == "complete"
