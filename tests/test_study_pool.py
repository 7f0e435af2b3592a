"""Studies with pretended runs: the order of runs, none twice, failures, going on, and the same for any workers."""

from __future__ import annotations

import io
import itertools
import json
import signal
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from pretended import ROUNDS, SPACE, CrashError, Pretended, curve, plan
from rich.console import Console

from fedham_flwr.core.errors import UnwritableError
from fedham_flwr.core.interrupts import Interruptible
from fedham_flwr.core.search_space import Choice
from fedham_flwr.reporting.console import duration
from fedham_flwr.study import conduct as conducting
from fedham_flwr.study.board import Board, title
from fedham_flwr.study.conduct import Outcome, conduct
from fedham_flwr.study.messages import Event, read_answer, read_event, read_run, write_answer, write_event, write_run
from fedham_flwr.study.planned import Plan, StudyMethod, Tune
from fedham_flwr.study.runs import RunResult, RunSpec
from fedham_flwr.study.store import Store
from fedham_flwr.study.times import Chain, Times

TUNE = Tune(8, (1000,))


@pytest.fixture
def folders(tmp_path: Path) -> Iterator[Path]:
    """New folders for studies."""
    return (tmp_path / str(number) for number in itertools.count())


def study(folder: Path, planned: Plan, pool: Pretended) -> tuple[Outcome, Store]:
    """Conduct a study in a folder, which may have been begun."""
    store = Store(folder)
    store.write_plan(planned)
    try:
        return conduct(planned, store, pool, Console(file=io.StringIO())), store
    finally:
        assert pool.closed


def tuning(folder: Path) -> str:
    return (folder / "tuning.json").read_text()


def results(folder: Path) -> dict[str, Any]:
    return {file.parent.name: json.loads(file.read_text()) for file in folder.glob("runs/*/run.json")}


# ---- order -----------------------------------------------------------------------------------------------------------


def test_without_tuning_there_are_the_report_runs_each_once(folders: Iterator[Path]) -> None:
    pool = Pretended(2)
    outcome, store = study(next(folders), plan(), pool)
    assert outcome == Outcome(complete=9)
    assert sorted((spec.method, spec.seed) for spec in pool.began) == sorted(
        itertools.product(["local", "fedavg", "fedper"], range(3))
    )
    assert pool.most == 2
    assert store.read_plan()["metric"] == "accuracy"
    assert not (store.folder / "tuning.json").exists()


def test_a_method_is_reported_with_what_its_tuning_chose_as_soon_as_that_is_known(folders: Iterator[Path]) -> None:
    pool, folder = Pretended(2), next(folders)
    study(folder, plan(tune=TUNE), pool)
    for told in json.loads(tuning(folder)):
        best = max((trial for trial in told["trials"] if trial["value"] is not None), key=lambda trial: trial["value"])
        assert told["chosen"] == best["number"]
        assert [trial["number"] for trial in told["trials"]] == list(range(8))
        mine = [spec for spec in pool.began if spec.method == told["method"]]
        assert [spec.trial for spec in mine] == [*range(8), -1, -1, -1]
        for spec in mine[8:]:
            assert {key: spec.settings[key] for key in SPACE} == best["values"]
    roles = [spec.role for spec in pool.began]
    assert roles.index("report") < len(roles) - 1 - roles[::-1].index("tuning"), "reports wait for other methods"


def test_all_workers_are_busy_though_each_method_asks_for_one_trial_at_a_time(folders: Iterator[Path]) -> None:
    pool = Pretended(3)
    study(next(folders), plan(tune=TUNE), pool)
    assert pool.most == 3
    assert {spec.method for spec in pool.began[:3]} == {"local", "fedavg", "fedper"}


def test_what_is_longest_is_begun_first(folders: Iterator[Path]) -> None:
    pool, folder = Pretended(1), next(folders)
    slow = {"local": 1.0, "fedavg": 5.0, "fedper": 30.0}
    pool._end = lambda spec, state, steps, error="": Event(  # type: ignore[method-assign]
        "ended", spec.key, result=RunResult(state, error, None, tuple(steps), slow[spec.method], "accuracy")
    )
    study(folder, plan(), pool)
    # One of each at first, since nothing is known of them.
    assert [spec.method for spec in pool.began] == [*slow, "fedper", "fedper", "fedavg", "fedavg", "local", "local"]


# ---- no run twice ----------------------------------------------------------------------------------------------------


def test_two_labels_with_equal_settings_share_their_runs(folders: Iterator[Path]) -> None:
    twin = plan("local fedavg")
    twin = plan("local fedavg", methods=(*twin.methods, StudyMethod("again", "fedavg")))
    pool, folder = Pretended(2), next(folders)
    outcome, _ = study(folder, twin, pool)
    assert outcome.complete == 6
    assert len(pool.began) == 6
    shared = [run for run in results(folder).values() if run["also"]]
    assert {(run["method"], tuple(run["also"][0])) for run in shared} == {("fedavg", ("report", "again", "digits", -1))}
    assert len(shared) == 3


def other_history() -> Plan:
    """Two labels of one strategy that search different spaces, which have a point in common."""
    planned = plan("local fedavg", TUNE)
    spaces = {
        ("fedavg", "digits"): {"learning-rate": Choice((0.03, 0.031, 0.032, 0.033, 0.034, 0.0001), 0.03)},
        ("again", "digits"): {"learning-rate": Choice((0.01, 0.00001, 0.00002, 0.00003, 0.00004, 0.0001), 0.01)},
    }
    methods = (*planned.methods[1:], StudyMethod("again", "fedavg"))
    return plan("local fedavg", Tune(8, (1000,), "grid"), methods=methods, spaces=spaces)


@pytest.mark.parametrize("seed", range(4))
def test_a_run_that_one_search_ends_early_goes_on_for_another(seed: int, folders: Iterator[Path]) -> None:
    together, folder = Pretended(2, seed), next(folders)
    study(folder, other_history(), together)
    told = {each["method"]: each for each in json.loads(tuning(folder))}
    for method, each in told.items():
        planned, alone = other_history(), next(folders)
        study(alone, plan("", planned.tune, methods=(planned.method(method),), spaces=planned.spaces), Pretended(1))
        assert json.loads(tuning(alone)) == [each]
    common = {method: each["trials"][-1] for method, each in told.items()}
    assert {trial["values"]["learning-rate"] for trial in common.values()} == {0.0001}
    assert common["fedavg"]["state"] == "pruned", "the test tests nothing"
    assert common["again"]["state"] == "complete"
    assert common["fedavg"]["runs"] == common["again"]["runs"]


# ---- failures --------------------------------------------------------------------------------------------------------


def test_a_run_that_fails_is_said_and_the_study_goes_on(folders: Iterator[Path]) -> None:
    pool, folder = Pretended(2, fails=lambda spec: "a loss of nan" if spec.method == "fedper" else ""), next(folders)
    outcome, _ = study(folder, plan(), pool)
    assert outcome == Outcome(complete=6, failed=3)
    failed = [run for run in results(folder).values() if run["state"] == "failed"]
    assert {(run["method"], run["error"]) for run in failed} == {("fedper", "a loss of nan")}
    assert all(len(run["steps"]) == 3 for run in failed)
    assert "a loss of nan" in (folder / "study.log").read_text()


def test_a_trial_that_fails_is_not_chosen(folders: Iterator[Path]) -> None:
    first = "diverged"
    pool = Pretended(2, fails=lambda spec: first if spec.trial == 0 else "")
    folder = next(folders)
    outcome, _ = study(folder, plan(tune=TUNE), pool)
    assert (outcome.failed, outcome.left_out) == (3, 0)
    for told in json.loads(tuning(folder)):
        assert [told["trials"][0][name] for name in ("state", "value", "error")] == ["failed", None, first]
        assert told["chosen"] not in (0, None)


def test_a_method_of_which_every_trial_fails_is_left_out_and_the_others_are_not(folders: Iterator[Path]) -> None:
    fails: Callable[[RunSpec], str] = lambda spec: "diverged" if spec.method == "fedper" else ""  # noqa: E731
    pool, folder = Pretended(2, fails=fails), next(folders)
    outcome, _ = study(folder, plan(tune=TUNE), pool)
    assert (outcome.left_out, outcome.left) == (3, 0)
    assert "3 left out" in outcome.text
    assert [told["chosen"] for told in json.loads(tuning(folder)) if told["method"] == "fedper"] == [None]
    assert {spec.method for spec in pool.began if spec.role == "report"} == {"local", "fedavg"}


def test_a_run_whose_worker_dies_is_tried_once_more_and_has_then_failed(folders: Iterator[Path]) -> None:
    fails: Callable[[RunSpec], str] = lambda spec: "died" if (spec.method, spec.seed) == ("local", 1) else ""  # noqa: E731
    pool, folder = Pretended(2, fails=fails), next(folders)
    outcome, _ = study(folder, plan(), pool)
    assert outcome == Outcome(complete=8, failed=1)
    assert sum((spec.method, spec.seed) == ("local", 1) for spec in pool.began) == 2
    assert [run["error"] for run in results(folder).values() if run["state"] == "failed"] == ["it is gone, 2 times"]


def test_a_run_that_hangs_is_ended_in_time_and_has_failed_and_is_not_tried_again(
    folders: Iterator[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    pool, folder = Pretended(2, hangs=lambda spec: (spec.method, spec.seed) == ("local", 1)), next(folders)
    monkeypatch.setattr(conducting, "Board", partial(Board, clock=lambda: pool.now))
    planned = plan(minutes=2)
    outcome, store = study(folder, planned, pool)
    assert outcome == Outcome(complete=8, failed=1)
    (failed,) = [run for run in results(folder).values() if run["state"] == "failed"]
    assert (failed["method"], failed["seed"], len(failed["steps"])) == ("local", 1, 3)
    assert (failed["error"], failed["seconds"]) == ("it was not done after minutes-per-run = 2, and was ended", 121.0)
    assert pool.ended == [failed["key"]]
    assert f"run {failed['key']} is failed ({failed['error']}) after 121.0 s" in (folder / "study.log").read_text()
    assert store.read_plan()["minutes-per-run"] == 2
    again = Pretended(2)
    assert (study(folder, plan(minutes=9), again)[0], again.began) == (outcome, [])


def test_a_full_disk_ends_the_study_and_is_no_run_s_fault(folders: Iterator[Path]) -> None:
    pool, folder = Pretended(1, fails=lambda spec: "full" if spec.seed == 1 else ""), next(folders)
    with pytest.raises(
        UnwritableError, match="it is gone; what is done is kept, and after room is made the same command goes on"
    ):
        study(folder, plan(), pool)
    assert all(run["state"] == "complete" for run in results(folder).values())


# ---- the same for any number of workers, and whenever it was interrupted ---------------------------------------------


@pytest.mark.parametrize("tune", [TUNE, Tune(8, (1000, 1001)), Tune(9, (1000,), "random", together=3)], ids=str)
def test_workers_and_turns_decide_nothing(tune: Tune, folders: Iterator[Path]) -> None:
    told = set()
    for workers, seed in ((1, 0), (2, 1), (2, 2), (7, 3)):
        folder = next(folders)
        study(folder, plan(tune=tune), Pretended(workers, seed))
        same = {key: {**run, "also": []} for key, run in results(folder).items()}
        told.add(tuning(folder) + json.dumps(same, sort_keys=True))
    assert len(told) == 1
    states = [trial["state"] for each in json.loads(tuning(folder)) for trial in each["trials"]]
    assert {"complete", "pruned"} <= set(states), "the test tests nothing"


def test_a_study_that_was_ended_at_any_moment_goes_on_to_the_same_end(folders: Iterator[Path]) -> None:
    whole, planned = next(folders), plan(tune=TUNE)
    study(whole, planned, Pretended(2, 7))
    for first in range(1, 200, 31):
        folder, began, seed = next(folders), list[RunSpec](), 0
        while True:
            seed += 1
            pool = Pretended(2, seed, until=first + 7 * seed)
            done = {key: run["state"] for key, run in results(folder).items()}
            try:
                study(folder, planned, pool)
                ended = True
            except CrashError:
                ended = False
            assert not {spec.key for spec in pool.began} & set(done), "a run is done twice"
            began += pool.began
            if ended:
                break
        assert seed > 1
        assert len(began) > len({spec.key for spec in began})
        assert tuning(folder) == tuning(whole)
        assert results(folder) == results(whole)


def test_of_an_error_the_least_is_chosen_also_after_a_crash(folders: Iterator[Path]) -> None:
    whole, folder, planned = next(folders), next(folders), plan(tune=TUNE)
    study(whole, planned, Pretended(2, higher=False))
    with pytest.raises(CrashError):
        study(folder, planned, Pretended(2, 1, higher=False, until=150))
    study(folder, planned, Pretended(2, 2, higher=False))
    assert tuning(folder) == tuning(whole)
    for told in json.loads(tuning(whole)):
        values = [trial["value"] for trial in told["trials"] if trial["value"] is not None]
        assert told["trials"][told["chosen"]]["value"] == min(values) < max(values)
    study(better := next(folders), planned, Pretended(2))
    assert [[trial["state"] for trial in told["trials"]] for told in json.loads(tuning(better))] == [
        [trial["state"] for trial in told["trials"]] for told in json.loads(tuning(whole))
    ], "an error ends other trials early than what is 1 less it"


def test_nothing_is_left_to_do_of_a_study_that_is_done(folders: Iterator[Path]) -> None:
    folder, planned = next(folders), plan(tune=TUNE)
    first, _ = study(folder, planned, Pretended(2))
    before = tuning(folder)
    pool = Pretended(2)
    again, _ = study(folder, planned, pool)
    assert (again, pool.began, tuning(folder)) == (first, [], before)


def test_only_the_first_tuning_seed_ends_a_trial_early(folders: Iterator[Path]) -> None:
    pool, folder = Pretended(2), next(folders)
    study(folder, plan("local", Tune(8, (1000, 1001))), pool)
    (told,) = json.loads(tuning(folder))
    for trial in told["trials"]:
        seeds = [spec.seed for spec in pool.began if spec.trial == trial["number"]]
        assert seeds == ([1000] if trial["state"] == "pruned" else [1000, 1001])
        assert len(trial["runs"]) == len(seeds)
        if trial["state"] == "complete":
            both = [curve(spec)[-1][1] for spec in pool.began if spec.trial == trial["number"]]
            assert trial["value"] == pytest.approx(sum(both) / 2, abs=1e-15)
    assert {trial["state"] for trial in told["trials"]} == {"complete", "pruned"}


@pytest.mark.parametrize("changed", [False, True], ids=["as-it-is", "as-another-error"])
def test_an_interrupt_closes_the_pool_and_is_noted(folders: Iterator[Path], changed: bool) -> None:
    pool, folder = Pretended(1), next(folders)
    several = pool.events
    calls = itertools.count()

    def events(timeout: float) -> list[Event]:
        if next(calls) != 40:
            return several(timeout)
        try:
            signal.raise_signal(signal.SIGINT)
        except KeyboardInterrupt:
            if changed:  # what threading.Condition.wait does to one that comes as its time runs out
                raise RuntimeError("release unlocked lock") from None
            raise
        raise AssertionError("nobody was interrupted")

    pool.events = events  # type: ignore[method-assign]
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt), Interruptible():
            study(folder, plan(), pool)
    finally:
        signal.signal(signal.SIGINT, before)
    assert "interrupted: 2 runs complete, 7 to do" in (folder / "study.log").read_text().splitlines()[-1]


# ---- time, words and messages ----------------------------------------------------------------------------------------


def test_the_time_left_is_by_runs_of_the_same_kind_or_else_by_rounds_of_the_same_method_or_of_all() -> None:
    times, (kind, role, other) = Times(), (("a", "t", "tuning"), ("b", "t", "tuning"), ("a", "t", "report"))
    times.rounds = {kind: 10, role: 10, other: 20}
    assert times.of(kind) is None
    assert times.left([Chain({kind: 1}, 1)], 2) is None
    for seconds in (2.0, 4.0):
        times.add(kind, seconds)
    assert (times.of(kind), times.of(role), times.of(other)) == (3.0, 3.0, 6.0)
    times.add(role, 9.0)
    assert (times.of(kind), times.of(role), times.of(other)) == (3.0, 9.0, 6.0)  # the other's runs say nothing of a's
    times.add(other, 5.0)
    # a: 4 tuning runs one after the other and 2 reports, 4 x 3 + 2 x 5 = 22; b: 9; on two workers 31 / 2, at least 22
    chains = [Chain({kind: 4, other: 2}, 1), Chain({role: 1}, 1)]
    assert times.left(chains, 2) == 22.0
    assert times.left(chains, 1) == 31.0
    assert times.left(chains, 1, spent=3.0) == 28.0
    assert times.left([Chain({kind: 8}, 4)], 2) == 12.0
    assert times.left([], 2) == 0.0


def spec() -> RunSpec:
    return plan().tuning_spec("fedper", "digits", 1000, 4, {"learning-rate": 0.1})


def test_messages_arrive_as_they_were_sent() -> None:
    result = RunResult("pruned", "", Path("fedper/20260101T000000Z-0"), ((1, 0.25), (2, 1 / 3)), 1.5, "rmse", False)
    ended, died = Event("ended", "k", result=result), Event("died", error="ö")
    for event in (Event("ready"), Event("step", "k", 3, 0.1), ended, died):
        line = write_event(event)
        assert line.endswith("\n")
        assert "\n" not in line[:-1]
        assert read_event(line) == event
    assert read_run(write_run(spec(), Path("/a b/ö"))) == (spec(), Path("/a b/ö"))
    assert [read_answer(write_answer(stop)) for stop in (True, False)] == [True, False]


def board(**given: Any) -> tuple[Board, io.StringIO]:
    out = io.StringIO()
    return Board(Console(file=out, width=100, **given), clock=lambda: 5.0), out


def test_a_line_is_printed_for_each_run_where_there_is_no_terminal() -> None:
    shown, out = board()
    with shown:
        shown.began(spec())
        shown.far(3, 40, 3725.0)
        shown.ended(spec(), RunResult("complete", steps=((1, 0.5), (2, 0.75)), seconds=2.25, metric="accuracy"))
        shown.ended(spec(), RunResult("failed", "it\nbroke", seconds=1.0))
        shown.ended(spec(), RunResult("pruned", seconds=1.0))
    name = "3/40  fedper  digits  trial 4  seed 1000"
    assert out.getvalue().splitlines() == [
        f"{name}  validation accuracy 0.75  2.2 s  1:02:05 left",
        f"{name}  failed: it  1.0 s  1:02:05 left",
        f"{name}  ended early  1.0 s  1:02:05 left",
    ]


def test_in_a_terminal_a_bar_and_the_runs_that_go_on_are_shown() -> None:
    shown, out = board(force_terminal=True, force_interactive=True)
    with shown:
        shown.began(spec())
        shown.round(spec().key, 2)
        shown.far(3, 40, 65.0)
    text = out.getvalue()
    assert "3/40" in text
    assert "1:05 left" in text
    assert f"fedper  digits  trial 4  seed 1000  round 2/{ROUNDS}" in text


def test_durations_and_titles() -> None:
    assert [duration(seconds) for seconds in (0.4, 59.6, 3600)] == ["0:00", "1:00", "1:00:00"]
    assert title(plan().report_spec("local", "digits", 2, {})) == "local  digits  seed 2"
