"""Studies of real runs in worker processes: killed and continued, interrupted, and with methods that break."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fedham_flwr.core.errors import UserError
from fedham_flwr.core.packages import TOP
from fedham_flwr.core.seeding import stream
from fedham_flwr.simulation import simulate
from fedham_flwr.study import process
from fedham_flwr.study.plan import read_plan
from fedham_flwr.study.planned import Plan
from fedham_flwr.study.pool import LocalPool
from fedham_flwr.study.runs import RunResult

pytestmark = pytest.mark.slow

COMMAND = "import sys; from run_simulation import fedham; sys.exit(fedham())"
SETTINGS = """
[settings]
samples-per-client = 60
num-server-rounds = 4
evaluate-every = 1
checkpoint-every = 1
model-cards = 0
device = "cpu"
"""
STUDY = f"""
name = "small"
methods = ["local", "fedper"]
floors = false
seeds = [0, 1]
{SETTINGS}
[tune]
trials = 2
"""
WAIT = 120.0


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the file of a small study, whose data are decoded once."""
    place = tmp_path_factory.mktemp("studies")
    (place / "small.toml").write_text(STUDY)
    return place


def start(place: Path, file: str, folder: Path, *options: str) -> subprocess.Popen[str]:
    """Start a study in a process of its own."""
    environment = {**os.environ, "PYTHONPATH": f"{TOP}{os.pathsep}{TOP / 'tests'}", "OMP_NUM_THREADS": "1"}
    environment["XDG_CACHE_HOME"] = str(place / "cache")
    given = ["study", str(place / file), "--output", str(folder), "--workers", "2", *options]
    return subprocess.Popen(
        [sys.executable, "-c", COMMAND, *given], cwd=place, env=environment, text=True, start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip


def whole(place: Path, file: str, folder: Path, code: int = 0, *options: str) -> str:
    """Carry a study out; what it printed."""
    process = start(place, file, folder, *options)
    output, _ = process.communicate(timeout=WAIT)
    assert process.returncode == code, output
    assert "Traceback" not in output
    return output


@pytest.fixture(scope="module")
def uninterrupted(place: Path) -> Path:
    """The folder of a study that nothing has interrupted."""
    folder = place / "whole"
    whole(place, "small.toml", folder)
    return folder


def children(pid: int) -> set[int]:
    """The processes that a process has started."""
    found = set()
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            if int(entry.read_text().rpartition(")")[2].split()[1]) == pid:
                found.add(int(entry.parent.name))
        except OSError:
            continue
    return found


def gone(pids: set[int], within: float = 5.0) -> bool:
    """Whether processes end in time."""
    end = time.monotonic() + within
    while there := {pid for pid in pids if running(pid)}:
        if time.monotonic() > end:
            return not there
        time.sleep(0.02)
    return True


def running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def log(folder: Path) -> str:
    file = folder / "study.log"
    return file.read_text() if file.exists() else ""


def wait_for_a_run(folder: Path, process: subprocess.Popen[str], before: int) -> None:
    """Until a run has begun since the log had so many characters, or the study is at its end."""
    end = time.monotonic() + WAIT
    while " begins: " not in log(folder)[before:].replace("begins: small", "") and process.poll() is None:
        assert time.monotonic() < end
        time.sleep(0.01)


def tables(folder: Path) -> dict[str, Any]:
    """The tables of a study by name, without columns of seconds and of places named by the time."""
    found = {}
    for file in sorted((folder / "tables").glob("*.csv")):
        rows = list(csv.DictReader(io.StringIO(file.read_text())))
        found[file.name] = [
            {name: text for name, text in row.items() if not re.search(r"\bs\b|directory", name)} for row in rows
        ]
    return found


def stamps(folder: Path) -> dict[str, tuple[int, int]]:
    """The run.json files that there are: where and when each was written."""
    return {file.parent.name: (file.stat().st_ino, file.stat().st_mtime_ns) for file in folder.glob("runs/*/run.json")}


def digests(folder: Path) -> dict[str, str]:
    """Key -> digest of the results."""
    found = folder.glob("runs/*/*/*/summary.json")
    return {file.parents[2].name: json.loads(file.read_text())["digest"] for file in found}


def test_a_study_killed_five_times_leaves_the_same_tables_and_no_worker(place: Path, uninterrupted: Path) -> None:
    folder, draws = place / "killed", stream(0, "kills")
    kept: dict[str, tuple[int, int]] = {}
    for _ in range(5):
        before = len(log(folder))
        process = start(place, "small.toml", folder)
        wait_for_a_run(folder, process, before)
        time.sleep(float(draws.uniform(0.0, 2.5)))
        workers = children(process.pid)
        process.kill()
        process.communicate()
        assert gone(workers), "a worker lives on"
        now = stamps(folder)
        assert now.items() >= kept.items(), "a run was done twice"
        kept = now
    whole(place, "small.toml", folder)
    assert stamps(folder).items() >= kept.items()
    assert digests(folder) == digests(uninterrupted)
    assert len(digests(folder)) == 8
    assert (folder / "tuning.json").read_bytes() == (uninterrupted / "tuning.json").read_bytes()
    assert tables(folder) == tables(uninterrupted)
    assert any((run / "undone.jsonl").exists() or '"resumed-from": [' in (run / "summary.json").read_text()
               for run in folder.glob("runs/*/*/*")), "no run was continued"  # fmt: skip


def test_nothing_is_run_again_of_a_study_that_is_done(place: Path, uninterrupted: Path) -> None:
    before = stamps(uninterrupted)
    output = whole(place, "small.toml", uninterrupted)
    assert stamps(uninterrupted) == before
    assert "nothing is left to be run" in output


def test_ctrl_c_ends_a_study_within_seconds_and_says_how_to_go_on(place: Path, uninterrupted: Path) -> None:
    folder = place / "interrupted"
    process = start(place, "small.toml", folder)
    wait_for_a_run(folder, process, 0)
    time.sleep(1.0)
    workers = children(process.pid)
    assert workers
    began = time.monotonic()
    os.killpg(process.pid, signal.SIGINT)
    output, _ = process.communicate(timeout=WAIT)
    assert process.returncode == 130
    assert time.monotonic() - began < 10
    assert gone(workers)
    assert "Traceback" not in output
    assert "the same command goes on: fedham study " in output
    assert " interrupted: " in log(folder)
    whole(place, "small.toml", folder)
    assert digests(folder) == digests(uninterrupted)


def test_methods_that_break_are_failures_and_the_others_are_reported(place: Path) -> None:
    (place / "broken.toml").write_text(f"""
name = "broken"
methods = ["raising", "ending", "once", "local"]
floors = false
seeds = [0]
{SETTINGS}
[method.raising]
strategy = "planted:RAISING"
[method.ending]
strategy = "planted:ENDING"
[method.once]
strategy = "planted:ENDING_ONCE"
""")
    folder = place / "broken"
    output = whole(place, "broken.toml", folder, 3)
    told = {run["method"]: run for run in map(json.loads, map(Path.read_text, folder.glob("runs/*/run.json")))}
    assert {method: run["state"] for method, run in told.items()} == {
        "raising": "failed", "ending": "failed", "once": "complete", "local": "complete",
    }  # fmt: skip
    assert "RuntimeError: planted (planted.py, line " in told["raising"]["error"]
    assert told["ending"]["error"] == "its process ended by itself, with the exit code 7, 2 times"
    assert [step[0] for step in told["ending"]["steps"]] == [1, 2]
    assert "2 runs complete, 2 failed" in output
    (summary,) = map(json.loads, map(Path.read_text, (folder / "runs" / told["once"]["key"]).glob("*/*/summary.json")))
    assert summary["resumed-from"] == [2]
    assert "planted" in (folder / "runs" / told["raising"]["key"] / "run.log").read_text()
    rows = tables(folder)["results.csv"]
    assert {row["method"] for row in rows if row["accuracy"]} == {"once", "local"}


def test_a_diverged_trial_has_failed_and_another_is_chosen(place: Path) -> None:
    (place / "wild.toml").write_text(f"""
name = "wild"
methods = ["local"]
floors = false
seeds = [0]
{SETTINGS}
[tune]
trials = 2
sampler = "grid"
[tune.space]
learning-rate = [0.02, 1e30]
""")
    folder = place / "wild"
    whole(place, "wild.toml", folder, 0)
    (told,) = json.loads((folder / "tuning.json").read_text())
    assert [trial["state"] for trial in told["trials"]] == ["complete", "failed"]
    assert "training diverged: the loss is nan" in told["trials"][1]["error"]
    assert told["chosen"] == 0


# ---- workers ---------------------------------------------------------------------------------------------------------


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
def planned(place: Path) -> Plan:
    return read_plan(place / "small.toml")


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
