"""The folder of a study: written whole, read back, held by one process, and never another study's."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fedham_flwr import __version__
from fedham_flwr.cli import main
from fedham_flwr.commands import study as command
from fedham_flwr.core.errors import UnwritableError, UserError
from fedham_flwr.study import estimate
from fedham_flwr.study.outlook import look
from fedham_flwr.study.plan import Plan, read_plan
from fedham_flwr.study.processors import physical
from fedham_flwr.study.runs import RunResult, RunSpec
from fedham_flwr.study.store import Store, opened

Make = Callable[..., Plan]
TEXT = 'name = "s"\nmethods = ["fedper", "heur"]\nfloors = false\nclients = 3\n'
METHOD = '[method.heur]\nstrategy = "pfedla"\npfedla.retained-layers = {layers}\n'
SETTINGS = "[settings]\nnum-server-rounds = 4\nbatch-size = {batch}\n"
TUNE = "[tune]\ntrials = {trials}\n"


@pytest.fixture
def plan(tmp_path: Path) -> Make:
    """Makes plans that differ in what is given."""

    def make(seeds: int = 2, layers: int = 1, batch: int = 10, trials: int = 0, more: str = "") -> Plan:
        text = f"{TEXT}seeds = {seeds}\n" + METHOD.format(layers=layers) + SETTINGS.format(batch=batch) + more
        text += TUNE.format(trials=trials) if trials else ""
        (tmp_path / "study.toml").write_text(text)
        return read_plan(tmp_path / "study.toml")

    return make


def done(spec: RunSpec, store: Store, state: Any = "complete", **given: Any) -> RunResult:
    """Write the result of a run, with a directory that looks like one."""
    directory = store.run_folder(spec.key) / "fedper" / "20260101T000000Z-0"
    directory.mkdir(parents=True)
    (directory / "summary.json").write_text("{}")
    steps = ((2, 0.5), (4, 0.75))
    result = RunResult(state, "", directory, steps, 2.0, **{"metric": "accuracy", "higher": True, **given})
    store.write_result(spec, result)
    return result


def test_what_is_written_is_read(plan: Make, tmp_path: Path) -> None:
    asked = plan()
    spec = asked.report_spec("heur", "digits", 1, {})
    with opened(tmp_path / "out", asked) as store:
        assert store.read_result(spec.key) is None
        done(spec, store, metric="loss", higher=False)
        found = store.read_result(spec.key)
        assert found == RunResult(
            "complete", "", Path("fedper/20260101T000000Z-0"), ((2, 0.5), (4, 0.75)), 2.0, "loss", False
        )
        assert found is not None
        assert found.value == 0.75
    told = json.loads((tmp_path / "out" / "runs" / spec.key / "run.json").read_text())
    assert {name: told[name] for name in ("key", "role", "method", "task", "seed", "trial", "clients")} == {
        "key": spec.key, "role": "report", "method": "heur", "task": "digits", "seed": 1, "trial": -1, "clients": 3,
    }  # fmt: skip
    assert told["settings"] == dict(spec.settings)
    assert told["directory"] == "fedper/20260101T000000Z-0"
    assert (tmp_path / "out" / "study.toml").read_text() == asked.text


def test_a_run_that_left_nothing_or_measured_what_is_no_number(plan: Make, tmp_path: Path) -> None:
    spec = plan().report_spec("heur", "digits", 1, {})
    store = Store(tmp_path / "out")
    store.write_result(spec, RunResult("failed", "it diverged", None, ((1, math.nan),), 0.1))
    found = store.read_result(spec.key)
    assert found is not None
    assert (found.state, found.error, found.directory, found.value) == ("failed", "it diverged", None, None)
    assert math.isnan(found.steps[0][1])


DAMAGE: dict[str, Callable[[dict[str, Any]], object]] = {
    "of another key": lambda told: {**told, "key": "0" * 32},
    "no state": lambda told: {k: v for k, v in told.items() if k != "state"},
    "a state that there is not": lambda told: {**told, "state": "done"},
    "steps that are none": lambda told: {**told, "steps": [1, 2]},
    "a list": lambda told: [told],
    "a directory that is gone": lambda told: {**told, "directory": "fedper/gone"},
    "seconds that are a word": lambda told: {**told, "seconds": "long"},
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_result_that_is_damaged_counts_as_none(plan: Make, tmp_path: Path, kind: str) -> None:
    spec, store = plan().report_spec("heur", "digits", 1, {}), Store(tmp_path / "out")
    done(spec, store)
    file = store.run_folder(spec.key) / "run.json"
    whole = file.read_text()
    assert store.read_result(spec.key)
    file.write_text(json.dumps(DAMAGE[kind](json.loads(whole))))
    assert store.read_result(spec.key) is None
    file.write_text(whole)
    summary = file.with_name("fedper") / "20260101T000000Z-0" / "summary.json"
    for text in ("", '{"final": ['):
        summary.write_text(text)
        assert store.read_result(spec.key) is None, "a run that no table could have is done again"
    summary.write_text("{}")
    assert store.read_result(spec.key)
    file.write_text(whole[: len(whole) // 2])
    assert store.read_result(spec.key) is None
    assert list(store.all_runs()) == []


def test_tuning_and_plan_are_read_back_and_damaged_ones_are_nothing(plan: Make, tmp_path: Path) -> None:
    told = [{"method": "heur", "task": "digits", "space": {}, "trials": [], "chosen": None}]
    with opened(tmp_path / "out", plan(trials=3)) as store:
        assert store.read_tuning() == []
        store.write_tuning(told)
        assert store.read_tuning() == told
        store.write_metric("accuracy")
    with opened(tmp_path / "out", plan(trials=5)) as store:  # another budget is the same study
        found = store.read_plan()
        assert store.read_tuning() == told
    assert (found["metric"], found["name"], found["format"], found["version"]) == ("accuracy", "s", 1, __version__)
    assert found["methods"][1] == {"label": "heur", "strategy": "pfedla", "settings": {"pfedla.retained-layers": 1}}
    assert found["tasks"] == [{"label": "digits", "settings": {}, "clients": 3}]
    assert found["tune"]["trials"] == 5
    assert (found["seeds"], found["floors"], found["reference"]) == ([0, 1], [], "fedper")
    (store.folder / "tuning.json").write_text('[{"method": ')
    assert store.read_tuning() == []


def test_methods_tasks_seeds_and_trials_can_be_added_and_the_keys_stay(plan: Make, tmp_path: Path) -> None:
    before = plan()
    with opened(tmp_path / "out", before) as store:
        done(before.report_spec("fedper", "digits", 0, {}), store)
    after = plan(seeds=3, trials=4, more='[task.digits]\n[task.iid]\npartitioner = "iid"\n')
    with opened(tmp_path / "out", after) as store:
        assert store.read_result(after.report_spec("fedper", "digits", 0, {}).key)
        assert [task["label"] for task in store.read_plan()["tasks"]] == ["digits", "iid"]


CONTRADICTIONS = {
    "[settings] batch-size = 10 (now 20)": {"batch": 20},
    "[method.heur] pfedla.retained-layers = 1 (now 2)": {"layers": 2},
    "[task.digits] alpha not set (now 0.5)": {"more": "[task.digits]\nalpha = 0.5\n"},
    "[task.digits] clients = 3 (now 4)": {"more": "[task.digits]\nclients = 4\n"},
}


@pytest.mark.parametrize("said", CONTRADICTIONS)
def test_a_folder_of_another_study_is_refused_and_nothing_is_written(plan: Make, tmp_path: Path, said: str) -> None:
    with opened(tmp_path / "out", plan()) as store:
        before = (store.folder / "plan.json").read_bytes()
    with (
        pytest.raises(UserError, match=rf"out is the folder of a study with {re.escape(said)}: methods, tasks, seeds"),
        opened(tmp_path / "out", plan(**CONTRADICTIONS[said])),
    ):
        pass
    assert (tmp_path / "out" / "plan.json").read_bytes() == before


@pytest.mark.parametrize("text", ["", "{", "[]", '{"name": "s"}', '{"settings": [], "methods": 3, "tasks": [4]}'])
def test_a_study_whose_plan_is_lost_or_damaged_goes_on(plan: Make, tmp_path: Path, text: str) -> None:
    with opened(tmp_path / "out", asked := plan()) as store:
        done(asked.report_spec("heur", "digits", 1, {}), store)
    (tmp_path / "out" / "report.html").touch()
    (tmp_path / "out" / "tables").mkdir()
    (tmp_path / "out" / "plan.json").write_text(text)
    with opened(tmp_path / "out", asked) as store:
        assert store.read_plan()["name"] == "s"
        assert store.read_result(asked.report_spec("heur", "digits", 1, {}).key) is not None


def test_a_folder_of_something_else_is_refused(plan: Make, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("x")
    with pytest.raises(UserError, match=r"out is not the folder of a study, and has thesis.tex in it"):
        Store(tmp_path / "out").check(plan())
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match=r"file is a file: wanted a folder for --output"):
        Store(tmp_path / "file").check(plan())


def test_a_disk_that_is_full_is_said(plan: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    store = Store(tmp_path / "out")
    store.write_tuning([])
    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(UnwritableError, match=r"the study cannot be written to .*out: No space left on device"):
        store.write_tuning([{"method": "x"}])
    assert store.read_tuning() == []
    assert [file.name for file in store.folder.iterdir()] == ["tuning.json"]


def test_one_process_at_a_time(plan: Make, tmp_path: Path) -> None:
    asked = plan()
    refused = r"out is the directory of a study that is going on: process \d+ on .* has been writing to it since"
    with opened(tmp_path / "out", asked), pytest.raises(UserError, match=refused), opened(tmp_path / "out", asked):
        pass
    with opened(tmp_path / "out", asked):
        pass


def test_a_run_that_is_also_anothers_is_noted_once(plan: Make, tmp_path: Path) -> None:
    asked, store = plan(), Store(tmp_path / "out")
    one = asked.report_spec("fedper", "digits", 0, {})
    store.claim(one)
    assert not list(store.folder.glob("*"))
    done(one, store)
    store.claim(one)
    other = RunSpec(one.key, "report", "other", "digits", 0, one.settings, 3)
    store.claim(other)
    store.claim(other)
    (told,) = store.all_runs()
    assert (told["method"], told["also"]) == ("fedper", [["report", "other", "digits", -1]])
    assert store.read_result(one.key)


RATES = (0.02, 0.05)


def test_what_is_there_is_counted_by_key(plan: Make, tmp_path: Path) -> None:
    asked, store = plan(trials=2), Store(tmp_path / "out")
    trials = [{"number": n, "values": {"learning-rate": rate}} for n, rate in enumerate(RATES)]
    specs = [asked.tuning_spec("fedper", "digits", 1000, n, {"learning-rate": RATES[n]}) for n in (0, 1)]
    done(specs[0], store)
    store.write_tuning([{"method": "fedper", "task": "digits", "space": {}, "trials": trials, "chosen": None}])
    ahead = look(asked, store)
    count = ahead.counts["fedper", "digits"]
    assert (count.tuning, count.tuning_there, count.report, count.report_there) == (2, 1, 2, 0)
    assert not ahead.complete
    done(specs[1], store)
    store.write_tuning([{"method": "fedper", "task": "digits", "space": {}, "trials": trials, "chosen": 1}])
    done(asked.report_spec("fedper", "digits", 0, {"learning-rate": 0.05}), store)
    done(asked.report_spec("fedper", "digits", 1, {"learning-rate": 0.02}), store)  # of values that were not chosen
    count = look(asked, store).counts["fedper", "digits"]
    assert (count.tuning_there, count.report_there, count.failed) == (2, 1, 0)


def test_runs_that_are_there_tell_the_time(plan: Make, tmp_path: Path) -> None:
    asked, store = plan(seeds=5), Store(tmp_path / "out")
    done(asked.report_spec("fedper", "digits", 0, {}), store)  # 2 s of 4 rounds
    done(asked.report_spec("heur", "digits", 0, {}), store)
    ahead = look(asked, store)
    ahead.measure(store)
    assert ahead.seconds(1) == pytest.approx(8 * 2.0)
    assert ahead.seconds(4) == pytest.approx(4.0)
    assert ahead.seconds(100) == pytest.approx(2.0), "no run is shorter than it is"
    *_, runs, workers = ahead.lines(4)
    time = ahead.time(4)
    assert runs == "runs     10 to report; 2 of them are there"
    assert (workers, time) == ("workers  4", "time     about 4 s, an estimate: by the runs that are there")


def test_a_trial_follows_the_one_before(plan: Make, tmp_path: Path) -> None:
    asked, store = plan(seeds=1, trials=6), Store(tmp_path / "out")
    for label in ("fedper", "heur"):
        store.write_result(asked.tuning_spec(label, "digits", 1000, 0, {}), RunResult("complete", seconds=2.0))
    ahead = look(asked, store)
    ahead.measure(store)
    assert ahead.seconds(100) == pytest.approx(6 * 2.0 + 2.0)


def test_failed_runs_are_done_again_when_that_is_asked(plan: Make, tmp_path: Path) -> None:
    asked, store = plan(), Store(tmp_path / "out")
    good, bad = (asked.report_spec(label, "digits", 0, {}) for label in ("fedper", "heur"))
    done(good, store)
    done(bad, store, "failed")
    ahead = look(asked, store)
    assert (ahead.failed, ahead.counts["heur", "digits"].report_there) == (1, 1)
    said = "runs     4 to report; 2 of them are there, 1 of which failed (--retry-failed does them again)"
    assert said in ahead.lines(1)
    assert look(asked, Store(tmp_path / "out", retry_failed=True)).counts["heur", "digits"].report_there == 0
    assert store.forget_failed() == 1
    assert store.read_result(bad.key) is None
    assert store.read_result(good.key)


def test_processors_are_cores_that_this_process_may_use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SLURM_CPUS_PER_TASK", raising=False)
    monkeypatch.delenv("SLURM_CPUS_ON_NODE", raising=False)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 1, 2, 3, 4, 5})
    for number in range(6):
        (tmp_path / f"cpu{number}" / "topology").mkdir(parents=True)
        (tmp_path / f"cpu{number}" / "topology" / "thread_siblings_list").write_text(f"{number % 3},{number % 3 + 3}\n")
    assert physical(tmp_path, tmp_path) == 3
    (tmp_path / "cpu.max").write_text("250000 100000")
    assert physical(tmp_path, tmp_path) == 2
    assert physical(tmp_path / "none", tmp_path / "none") == 6
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "1")
    assert physical(tmp_path, tmp_path) == 1


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["no.toml"], "error: no.toml cannot be read (No such file or directory)"),
        (["study.toml", "--workers", "0"], "error: --workers 0 must be above 0"),
        (["study.toml", "--output", "taken", "--dry-run"], "is not the folder of a study, and has x in it"),
    ],
)
def test_a_wrong_command_is_one_sentence(
    plan: Make,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    said: str,
) -> None:
    plan()
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "x").write_text("")
    monkeypatch.chdir(tmp_path)
    assert main(["study", *arguments]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert said in err
    assert err.count("\n") == 1


def test_ctrl_c_says_how_to_go_on(
    plan: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    plan()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(estimate, "rehearsed", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    assert command.command(["study.toml", "--dry-run", "--output", "a b"], "fedham study") == 130
    assert capsys.readouterr().err == (
        "interrupted; what is done is kept, and the same command goes on: fedham study study.toml --dry-run --output "
        "'a b'\n"
    )
