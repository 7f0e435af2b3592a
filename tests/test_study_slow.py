"""Studies of real runs in worker processes: killed and continued, interrupted, and with methods that break."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from studies import (
    SETTINGS,
    STUDY,
    WAIT,
    begun,
    children,
    digests,
    environment,
    gone,
    halfway,
    log,
    stamps,
    start,
    tables,
    wait_for,
    whole,
)

from fedham_flwr.core.seeding import stream

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the file of a small study, whose data are decoded once."""
    place = tmp_path_factory.mktemp("studies")
    (place / "small.toml").write_text(STUDY)
    return place


@pytest.fixture(scope="module")
def uninterrupted(place: Path) -> Path:
    """The folder of a study that nothing has interrupted."""
    folder = place / "whole"
    whole(place, "small.toml", folder)
    return folder


def test_a_study_killed_five_times_leaves_the_same_tables_and_no_worker(place: Path, uninterrupted: Path) -> None:
    folder, draws = place / "killed", stream(0, "kills")
    kept: dict[str, tuple[int, int]] = {}
    for number in range(5):
        before = len(log(folder))
        process = start(place, "small.toml", folder)
        if number:
            wait_for(lambda at=before: begun(folder, at), process)  # type: ignore[misc]
            time.sleep(float(draws.uniform(0.0, 2.5)))
        else:
            wait_for(lambda: halfway(folder), process)
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
    summaries = map(json.loads, map(Path.read_text, folder.glob("runs/*/*/*/summary.json")))
    assert any(summary["resumed-from"] for summary in summaries), "no run was continued"


def test_nothing_is_run_again_of_a_study_that_is_done(place: Path, uninterrupted: Path) -> None:
    before = stamps(uninterrupted)
    output = whole(place, "small.toml", uninterrupted)
    assert stamps(uninterrupted) == before
    assert "nothing is left to be run" in output


def test_searches_are_taken_over_from_another_folder(place: Path, uninterrupted: Path) -> None:
    folder = place / "taken"
    output = whole(place, "small.toml", folder, 0, "--tuning", str(uninterrupted))
    assert "tuned    2 searches taken from --tuning" in output
    assert "at most" not in output
    told = [json.loads(file.read_text()) for file in folder.glob("runs/*/run.json")]
    assert [run["role"] for run in told] == ["report"] * 4
    ours, theirs = tables(folder), tables(uninterrupted)
    for name in ("results.csv", "differences.csv", "clients.csv", "tuned.csv"):
        assert ours[name] == theirs[name], name


def test_ctrl_c_ends_a_study_within_seconds_and_says_how_to_go_on(place: Path, uninterrupted: Path) -> None:
    folder = place / "interrupted"
    process = start(place, "small.toml", folder)
    wait_for(lambda: begun(folder), process)
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


# ---- a Ray cluster ---------------------------------------------------------------------------------------------------


ON_RAY = """
import contextlib
import sys
from pathlib import Path
import ray
from fedham_flwr.study.conduct import conduct
from fedham_flwr.study.plan import read_plan
from fedham_flwr.study.process import START
from fedham_flwr.study.ray_pool import RayPool
from fedham_flwr.study.store import opened

def processes():
    mine, found = str(START).encode(), set()
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if mine in file.read_bytes():
                found.add(file.parent.name)
    return found

planned, folder, before = read_plan(sys.argv[1]), Path(sys.argv[2]), processes()
with opened(folder, planned) as store:
    pool = RayPool("", 2)
    spec = planned.report_spec("local", "digits", 0, {})
    pool.submit(spec, folder / "runs" / "lost")
    while not (told := pool.events(60)):
        pass
    ray.kill(pool._seats[0].actor)
    while told[-1].kind != "died":
        told += pool.events(60)
    assert told[-1].key == spec.key
    pool.submit(spec, folder / "runs" / "ended")
    while not pool.events(60):
        pass
    assert [pid for pid in processes() if pid not in before]
    pool.end(spec.key)
    assert not pool._seats
    assert processes() == before
    assert conduct(planned, store, pool).complete == 8
    assert not ray.is_initialized()
"""
"""A study on a cluster of this machine, after an actor was lost with its run, and a run was ended with its process."""


def test_a_study_on_a_ray_cluster_has_the_same_runs(place: Path, uninterrupted: Path) -> None:
    folder = place / "ray"
    # In a process of its own: Ray leaves behind what tests would be warned of.
    done = subprocess.run(
        [sys.executable, "-c", ON_RAY, str(place / "small.toml"), str(folder)], cwd=place, check=False, text=True,
        env=environment(place), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=WAIT,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    assert {key: digest for key, digest in digests(folder).items() if key not in ("lost", "ended")} == digests(
        uninterrupted
    )
    assert (folder / "tuning.json").read_bytes() == (uninterrupted / "tuning.json").read_bytes()
