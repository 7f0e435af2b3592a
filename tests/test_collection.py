"""Runs as a collection: labels, what counts and what is a failure, and what one run's facts say."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from comparisons import MIB, Made, store, write_study

from fedham_flwr.analysis.collection import of_runs, of_study, open_collection
from fedham_flwr.core.errors import UserError
from fedham_flwr.core.records import NOVEL, RoundRecord, Row
from fedham_flwr.reporting.run_directory import RunDirectory
from fedham_flwr.training.metrics import METRICS, Metric


def made_runs(folder: Path, *runs: Made) -> Path:
    for at, run in enumerate(runs):
        run.write(folder / run.strategy / f"{at:02}-{run.seed}")
    return folder


# ---- runs that no study made -----------------------------------------------------------------------------------------


def test_floors_come_first_and_the_first_is_the_reference(tmp_path: Path) -> None:
    strategies = ("fedper", "fedavg", "pfedla", "local")
    found = of_runs([made_runs(tmp_path, *(Made(name, seed) for name in strategies for seed in (0, 1)))])
    assert found.methods == ("local", "fedavg", "fedper", "pfedla")
    assert (found.floors, found.reference, found.tasks) == (("local", "fedavg"), "local", ("digits",))
    assert [(run.method, run.seed) for run in found.runs[:3]] == [("local", 0), ("local", 1), ("fedavg", 0)]
    assert found.values("fedper", "digits") == {0: pytest.approx(0.6), 1: pytest.approx(0.6)}
    assert (found.failures, found.warnings, found.split) == ((), (), "test")
    assert found.title == "4 methods on digits"


def test_one_run_is_compared_with_nothing(tmp_path: Path) -> None:
    found = open_collection([Made().write(tmp_path / "run")])
    assert (found.title, found.methods, found.reference, found.floors) == ("fedper on digits", ("fedper",), "", ())


def test_methods_are_told_apart_by_the_settings_that_differ(tmp_path: Path) -> None:
    rates = [
        Made(settings={"learning-rate": rate, "device": device}) for rate, device in ((0.1, "cpu"), (0.02, "auto"))
    ]
    other = Made("pfedla", settings={"learning-rate": 0.1})
    found = of_runs([made_runs(tmp_path, *rates, other)])
    assert found.methods == ("fedper, learning-rate=0.1", "fedper, learning-rate=0.02", "pfedla")


def test_settings_of_others_and_of_circumstance_make_no_other_method(tmp_path: Path) -> None:
    apart = {"pfedla.hidden-dim": 7, "vit.width": 9, "evaluate-every": 3, "cache-dir": "/x", "model-cards": 0}
    found = of_runs([made_runs(tmp_path, Made(seed=0), Made(seed=1, settings=apart))])
    assert found.methods == ("fedper",)
    own = Made(seed=2, settings={"fedper.personal-layers": 2})
    found = of_runs([made_runs(tmp_path / "own", Made(), own)])
    assert found.methods == ("fedper, fedper.personal-layers=1", "fedper, fedper.personal-layers=2")  # 1 by default


def test_a_method_may_have_other_settings_on_each_task(tmp_path: Path) -> None:
    runs = [Made(settings={"alpha": alpha, "learning-rate": rate}) for alpha, rate in ((0.1, 0.02), (1.0, 0.05))]
    found = of_runs([made_runs(tmp_path, *runs)])
    assert (found.methods, found.tasks) == (("fedper",), ("digits, alpha=0.1", "digits, alpha=1"))


def test_tasks_are_told_apart_by_data_and_number_of_clients(tmp_path: Path) -> None:
    more = Made(scores={"0": 0.5, "1": 0.5, "2": 0.5})
    other = Made(settings={"dataset": "/far/away/hospital.csv"})
    found = of_runs([made_runs(tmp_path, Made(), more, other)])
    assert found.tasks == ("digits, 2 clients", "digits, 3 clients", "hospital.csv")


def test_of_the_same_run_twice_the_last_counts(tmp_path: Path) -> None:
    late = Made(scores={"0": 0.9, "1": 0.9}, environment={"started": "2027-01-01T00:00:00Z"})
    found = of_runs([made_runs(tmp_path, late, Made())])
    assert found.values("fedper", "digits") == {0: pytest.approx(0.9)}
    assert len(found.warnings) == 1
    assert "fedper, digits, seed 0 was run more than once with the same settings" in found.warnings[0]
    assert found.warnings[0].endswith("and not fedper/01-0.")


def test_several_commits_and_versions_are_said(tmp_path: Path) -> None:
    facts = [{"commit": "a" * 40}, {"commit": "b" * 40 + "-dirty", "fedham-flwr": "0.2.0"}]
    runs = [Made(seed=at, environment=each) for at, each in enumerate(facts)]
    versions, commits, dirty = of_runs([made_runs(tmp_path, *runs)]).warnings
    assert versions == "The runs are of several versions of this package: 0.1.0, 0.2.0."
    assert commits == f"The runs are of several commits: {'a' * 40}, {'b' * 40}-dirty."
    assert dirty == f"Files differed from the commit that is named: {'b' * 40}-dirty."


def test_what_runs_were_warned_of_is_said_with_whose_it_is(tmp_path: Path) -> None:
    found = of_runs([made_runs(tmp_path, Made(), Made("local", more={"warnings": ["training has diverged: so"]}))])
    assert found.warnings == ("local, digits, seed 0: training has diverged: so.",)


def test_runs_that_did_not_come_to_their_end_are_failures(tmp_path: Path) -> None:
    made_runs(tmp_path, Made(), Made("fedavg"), Made("local"), Made("pfedla"))
    (tmp_path / "fedavg" / "01-0" / "summary.json").unlink()
    for run, change in (("local/02-0", {"error": "UserError: no"}), ("pfedla/03-0", {"exported": None})):
        file = tmp_path / run / "summary.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), **change}))
    found = of_runs([tmp_path])
    assert [run.method for run in found.runs] == ["fedper"]
    assert {fault.method: fault.error for fault in found.failures} == {
        "fedavg": "it has not come to its end",
        "local": "UserError: no",
        "pfedla": "it has no closing evaluation",
    }
    assert {fault.state for fault in found.failures} == {"failed"}


def test_scores_are_of_validation_where_no_test_split_was_scored(tmp_path: Path) -> None:
    blind = Made(splits=("validation",))
    assert of_runs([made_runs(tmp_path / "blind", blind)]).split == "validation"
    found = of_runs([made_runs(tmp_path / "mixed", blind, Made("fedavg"))])
    assert (found.split, [run.method for run in found.runs]) == ("test", ["fedavg"])
    assert [fault.error for fault in found.failures] == ["its closing evaluation has no test accuracy"]


def test_runs_of_a_task_are_judged_by_one_metric(tmp_path: Path) -> None:
    odd = Made("local", metric=METRICS["rmse"])
    found = of_runs([made_runs(tmp_path, Made("fedper"), odd)])
    assert [fault.error for fault in found.failures] == ["it is judged by rmse, and the others of its task by accuracy"]


@pytest.mark.parametrize("higher", [True, False])
def test_the_direction_of_a_users_metric_is_told_by_its_worst_clients(tmp_path: Path, higher: bool) -> None:
    own = Metric("mine", higher)
    found = of_runs([Made(metric=own, scores={"0": 5.0, "1": 9.0}).write(tmp_path / "run")])
    assert found.metric == own


def test_a_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"{tmp_path} holds no run: wanted a directory that a run left"):
        of_runs([tmp_path])


# ---- of a study ------------------------------------------------------------------------------------------------------


def test_a_study_has_its_runs_in_order_and_says_what_is_missing(tmp_path: Path) -> None:
    runs = {(method, "digits", seed): Made(method, seed) for method in ("local", "fedper") for seed in (0, 1)}
    write_study(tmp_path, {"local": {}, "fedper": {}}, runs, floors=["local"])
    shutil.rmtree(tmp_path / "runs" / "fedper-digits-1")
    found = open_collection([tmp_path])
    assert (found.title, found.methods, found.reference, found.floors) == (
        "test",
        ("local", "fedper"),
        "local",
        ("local",),
    )
    assert [(run.method, run.seed, run.key) for run in found.runs] == [
        ("local", 0, "local-digits-0"), ("local", 1, "local-digits-1"), ("fedper", 0, "fedper-digits-0"),
    ]  # fmt: skip
    (fault,) = found.failures
    assert (fault.method, fault.seed, fault.state, fault.error) == (
        "fedper",
        1,
        "missing",
        "the study has not done it yet",
    )
    assert found.seeds("digits") == [0, 1]


def tuning(*trials: dict[str, Any], chosen: int | None) -> list[dict[str, Any]]:
    space = {"learning-rate": {"low": 0.01, "high": 0.1, "log": True, "whole": False, "start": 0.02, "source": "p. 7"}}
    return [{"method": "fedper", "task": "digits", "space": space, "trials": list(trials), "chosen": chosen}]


def trial(number: int, rate: float, value: float | None) -> dict[str, Any]:
    state = "complete" if value is not None else "failed"
    return {
        "number": number,
        "values": {"learning-rate": rate},
        "value": value,
        "state": state,
        "error": "",
        "runs": [],
    }


def test_of_an_earlier_version_of_the_study_nothing_counts(tmp_path: Path) -> None:
    """Settings of the plan, of a method and of tuning have changed; what was asked for stands among older runs."""
    wanted = Made(scores={"0": 0.8, "1": 0.8}, settings={"batch-size": 5, "learning-rate": 0.1, "alpha": 1.0})
    write_study(
        tmp_path, {"fedper": {"batch-size": 5}}, {("fedper", "digits", 0): wanted}, settings={"alpha": 1.0},
        tuning=tuning(trial(0, 0.02, 0.5), trial(1, 0.1, 0.6), chosen=1),
    )  # fmt: skip
    for at, change in enumerate(({"batch-size": 9}, {"learning-rate": 0.02}, {"alpha": 2.0})):
        older = replace(wanted, scores={"0": 0.1, "1": 0.1}, settings={**wanted.settings, **change})
        store(tmp_path, f"old{at}", "fedper", "digits", older)
    store(tmp_path, "none", "fedper", "digits", wanted, clients=3)
    found = of_study(tmp_path)
    assert found.values("fedper", "digits") == {0: pytest.approx(0.8)}
    assert (found.tuning[0]["chosen"], found.reference) == (1, "")


def test_of_runs_with_the_same_settings_the_one_that_ended_last_counts(tmp_path: Path) -> None:
    write_study(tmp_path, {"fedper": {}}, {("fedper", "digits", 0): Made(scores={"0": 0.8, "1": 0.8})})
    older = store(tmp_path, "an-older-version", "fedper", "digits", Made())
    os.utime(older, (0, 0))
    assert of_study(tmp_path).values("fedper", "digits") == {0: pytest.approx(0.8)}
    os.utime(older, (4e9, 4e9))
    assert of_study(tmp_path).values("fedper", "digits") == {0: pytest.approx(0.6)}


def test_a_run_that_two_labels_share_is_in_the_tables_of_both(tmp_path: Path) -> None:
    runs = {("fedper", "digits", seed): Made(seed=seed) for seed in (0, 1)}
    folder = write_study(tmp_path / "study", {"fedper": {}, "again": {"batch-size": 10}}, runs)
    for file in folder.glob("runs/*/run.json"):
        told = {**json.loads(file.read_text()), "also": [["report", "again", "digits", -1]]}
        file.write_text(json.dumps(told))
    found = of_study(folder)
    assert found.failures == ()
    assert found.values("again", "digits") == found.values("fedper", "digits")
    assert len(found.values("again", "digits")) == 2


def test_a_method_of_which_no_trial_came_to_its_end_is_absent_for_that_reason(tmp_path: Path) -> None:
    failed = tuning(trial(0, 0.1, None), trial(1, 0.2, None), chosen=None)
    write_study(tmp_path, {"fedper": {}}, {}, seeds=[0], tuning=failed)
    (fault,) = of_study(tmp_path).failures
    assert (fault.state, fault.error) == ("missing", "none of 2 trials of its tuning came to its end")


def test_failed_runs_of_tuning_are_listed_but_in_no_table(tmp_path: Path) -> None:
    write_study(tmp_path, {"fedper": {}}, {("fedper", "digits", 0): Made()})
    store(
        tmp_path, "bad", "fedper", "digits", None, role="tuning", state="failed", error="it diverged", trial=3, seed=9
    )
    store(tmp_path, "good", "fedper", "digits", Made(seed=9), role="tuning", trial=2)
    store(tmp_path, "worse", "fedper", "digits", None, state="failed", error="no memory", seed=0)
    found = of_study(tmp_path)
    assert {(fault.role, fault.error, fault.directory) for fault in found.failures} >= {("tuning", "it diverged", None)}
    assert all(run.seed == 0 for run in found.runs)
    assert found.seeds("digits") == [0]


def test_tuning_without_fixed_data_is_warned_of(tmp_path: Path) -> None:
    fixed, drawn = (Made(settings={"learning-rate": 0.1, "data-seed": seed}) for seed in (0, -1))
    for name, made, wanted in (("fixed", fixed, 0), ("drawn", drawn, 1)):
        chosen = tuning(trial(0, 0.1, 0.5), chosen=0)
        folder = write_study(tmp_path / name, {"fedper": {}}, {("fedper", "digits", 0): made}, tuning=chosen)
        assert (
            sum("what tuning validated on can be a test sample" in each for each in of_study(folder).warnings) == wanted
        )


def test_a_study_stands_alone_and_its_files_must_be_readable(tmp_path: Path) -> None:
    study = write_study(tmp_path / "study", {"fedper": {}}, {("fedper", "digits", 0): Made()})
    with pytest.raises(UserError, match="is the folder of a study, which stands alone"):
        open_collection([study, Made().write(tmp_path / "run")])
    (study / "plan.json").write_text("[]")
    with pytest.raises(UserError, match=r"plan\.json holds list, wanted dict"):
        of_study(study)
    (study / "plan.json").write_text("{")
    with pytest.raises(UserError, match=r"plan\.json cannot be read"):
        of_study(study)


def test_a_plan_or_a_tuning_whose_inside_is_damaged_is_said(tmp_path: Path) -> None:
    study = write_study(tmp_path / "study", {"fedper": {}}, {("fedper", "digits", 0): Made()})
    plan = json.loads((study / "plan.json").read_text())
    damaged = {"tuning.json": [{"method": "fedper", "trials": 3}], "plan.json": {**plan, "methods": [3]}}
    for name, told in damaged.items():
        (study / name).write_text(json.dumps(told))
        with pytest.raises(UserError, match=r"plan\.json or tuning\.json in .*study is damaged: `fedham study`"):
            of_study(study)
        (study / "tuning.json").write_text("[]")


def test_exchanges_that_are_damaged_are_named(tmp_path: Path) -> None:
    found = of_runs([made_runs(tmp_path, Made())])
    (found.runs[0].directory / "rounds.jsonl").write_text("{\n")
    with pytest.raises(UserError, match=r"rounds\.jsonl cannot be read: .*; wanted a line of JSON for each exchange"):
        _ = found.runs[0].rounds


# ---- one run ---------------------------------------------------------------------------------------------------------


def test_the_model_that_the_method_stands_for_and_the_other_phase(tmp_path: Path) -> None:
    run = of_runs([Made("fedavg", phase="after", other=-0.25).write(tmp_path / "run")]).runs[0]
    assert (run.phase, run.model, run.strategy, run.metric) == ("after", "personal", "fedavg", "accuracy")
    assert (run.value(), run.value("before"), run.value("after")) == pytest.approx((0.6, 0.35, 0.6))
    assert run.value(metric="f1") is None
    assert run.per_client("before") == pytest.approx({"0": 0.25, "1": 0.45})
    assert run.per_client(metric="f1") == {}


def test_scores_of_the_end_need_no_file_but_those_of_the_last_round(tmp_path: Path) -> None:
    path = Made().write(tmp_path / "run")
    for part in (path / "metrics").glob("round-0000[12]-*.parquet"):
        part.write_bytes(b"unreadable")
    assert of_runs([path]).runs[0].per_client() == {"0": 0.5, "1": 0.7}


def test_novel_clients_are_kept_apart(tmp_path: Path) -> None:
    run = of_runs([Made(novel={"9": 0.4}).write(tmp_path / "run")]).runs[0]
    assert run.value() == pytest.approx(0.6)
    assert run.per_client() == {"0": 0.5, "1": 0.7}
    assert [run.value(phase, population=NOVEL) for phase in ("before", "after")] == [0.2, 0.4]
    assert run.per_client("after", population=NOVEL) == {"9": 0.4}


def test_a_run_from_before_there_were_novel_clients_or_data_seeds_is_read(tmp_path: Path) -> None:
    path = Made().write(tmp_path / "run")
    for part in (path / "metrics").iterdir():
        pq.write_table(pq.ParquetFile(part).read().drop_columns(["population"]), part)
    config = path / "config.toml"
    config.write_text("".join(line for line in config.read_text().splitlines(True) if not line.startswith("data-seed")))
    (path / "environment.json").unlink()
    run = of_runs([path]).runs[0]
    assert (run.per_client(), run.data_seed, dict(run.environment)) == ({"0": 0.5, "1": 0.7}, -1, {})
    assert [point.value for point in run.curve()] == pytest.approx([0.0, 0.3, 0.6])


def test_a_curve_has_the_bytes_and_seconds_of_the_training_before_it(tmp_path: Path) -> None:
    run = of_runs([Made(up=MIB, closing=True).write(tmp_path / "run")]).runs[0]
    # Two clients send and receive 1 MiB each in each of two rounds of 2.5 seconds.
    found = [(point.round, point.bytes, point.seconds) for point in run.curve("validation")]
    assert found == [(1, 0, 0.0), (2, 4 * MIB, 2.5), (3, 8 * MIB, 5.0)]
    assert [point.value for point in run.curve("validation")] == pytest.approx([0.0, 0.3, 0.6])
    assert [point.round for point in run.curve("test")] == [3]
    assert run.curve(metric="f1") == ()


def test_questions_count_with_what_they_were_asked_before(tmp_path: Path) -> None:
    path = Made(rounds=1).write(tmp_path / "run")
    times = {"exchange": 1.0, "check": 0.0}
    kinds = (("query", 3), ("train", 10), ("query", 100), ("evaluate", 1000), ("query", 5), ("train", 20), ("query", 7))
    (path / "rounds.jsonl").unlink()
    for number, (kind, size) in zip((1, 1, 1, 1, 2, 2, 3), kinds, strict=True):
        RunDirectory(path).write_round(RoundRecord(number, kind, ("0",), 1, (), times, size, 0), [])
    assert of_runs([path]).runs[0].spent == {1: (0, 0.0), 2: (13, 2.0), 3: (38, 4.0)}


def test_a_round_in_which_not_all_were_scored_is_no_point_of_a_curve(tmp_path: Path) -> None:
    path = Made(rounds=3).write(tmp_path / "run")
    part = path / "metrics" / "round-00002-train.parquet"
    table = pq.ParquetFile(part).read()
    first = table.filter([client == "0" for client in table["client"].to_pylist()])
    pq.write_table(first, part)
    run = of_runs([path]).runs[0]
    assert [point.round for point in run.curve()] == [1, 3, 4]
    # The other client is scored by an evaluation of the same round.
    rest = [Row(2, "1", "test", "personal", "before", "accuracy", 0.3, 10)]
    RunDirectory(path).write_round(RoundRecord(2, "evaluate", ("1",), 1, (), {"exchange": 0, "check": 0}, 0, 0), rest)
    again = of_runs([path]).runs[0]
    assert [point.round for point in again.curve()] == [1, 2, 3, 4]
    assert again.curve()[1].value == pytest.approx((0.5 / 3 + 0.3) / 2)
