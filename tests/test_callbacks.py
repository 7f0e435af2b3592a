"""Callbacks: what they are told, how they end a run, what is refused, and what becomes of one that fails."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from own_callbacks import READY, Failing, Listener, StopAt

import fedham_flwr
from fedham_flwr import Callback, Run, make_client_app, simulate
from fedham_flwr.callbacks.chosen import chosen
from fedham_flwr.core.errors import UserError
from fedham_flwr.core.records import Row
from fedham_flwr.federation.rounds import RoundStrategy
from fedham_flwr.reporting.run_directory import read_rows, to_rows
from fedham_flwr.reporting.summary import score
from fedham_flwr.reporting.validation import validation_values
from fedham_flwr.runners.in_process import InProcessGrid, run_on
from fedham_flwr.sections import without_callbacks
from fedham_flwr.settings import Value, parse

SHORT: dict[str, Any] = {
    "clients": 3, "samples_per_client": 48, "batch_size": 24, "verbose": False, "device": "cpu", "model": "digits-cnn",
}  # fmt: skip
Go = Callable[..., Run]


@pytest.fixture
def go(workplace: None) -> Go:
    """Run with few samples: go("fedper", 3, [a callback], ...)."""

    def run(strategy: str = "fedper", rounds: int = 3, callbacks: Any = "", **given: Any) -> Run:
        return simulate(strategy, num_server_rounds=rounds, callbacks=callbacks, **{**SHORT, **given})

    return run


def naive_validation(rows: Sequence[Row], number: int, phase: str, metric: str) -> float:
    """The mean over samples of the scores that the clients' own models have."""
    chosen: dict[str, Row] = {}
    for row in rows:
        if (row.round, row.split, row.phase, row.metric, row.population) == (
            number, "validation", phase, metric, "member",
        ) and not (row.client in chosen and row.model == "global"):  # fmt: skip
            chosen[row.client] = row
    return sum(row.value * row.n for row in chosen.values()) / sum(row.n for row in chosen.values())


# ---- what it is told -------------------------------------------------------------------------------------------------


def test_it_is_told_what_is_in_the_files(go: Go) -> None:
    heard = Listener()
    run = go("fedper", 3, [heard], novel_clients=1, clients=4)
    (start,), (end,) = heard.runs, heard.ends
    assert (start.directory, start.strategy, start.network) == (run.directory, "fedper", "digits-cnn")
    assert (start.clients, start.validated, start.rounds, start.done) == (4, 3, 3, 0)
    assert (start.metric, dict(start.metrics)) == ("accuracy", {"accuracy": True, "loss": False})
    assert start.settings["samples-per-client"] == 48
    assert (end.error, end.summary["digest"]) == (None, run.summary["digest"])
    assert [(r.round, r.closing, r.again) for r in heard.reports] == [
        (1, False, False), (2, False, False), (3, False, False), (4, True, False),
    ]  # fmt: skip
    rows, lines = to_rows(read_rows(run.directory)), defaultdict[int, list[dict[str, Any]]](list)
    for text in (run.directory / "rounds.jsonl").read_text().splitlines():
        lines[(line := json.loads(text))["round"]].append(line)
    for report in heard.reports:
        its = lines[report.round]
        assert report.kinds == tuple(line["kind"] for line in its)
        assert report.seconds == pytest.approx(
            sum(line["seconds"]["exchange"] + line["seconds"]["check"] for line in its)
        )
        assert report.bytes_up == sum(line["bytes-up"] for line in its)
        assert report.bytes_down == sum(line["bytes-down"] for line in its)
        assert list(report.rows) == [row for row in rows if row.round == report.round]
        wanted = [{k: v for k, v in entry.items() if k != "round"} for entry in score(report.rows)]
        assert [{k.replace("_", "-"): v for k, v in one._asdict().items()} for one in report.statistics] == wanted
        assert report.value == report.validation["accuracy"]
        for metric, value in report.validation.items():
            assert value == pytest.approx(naive_validation(rows, report.round, "before", metric), rel=1e-12)
    paths = {one.path for one in heard.reports[-1].statistics}
    assert {"test/personal/before/accuracy", "novel/validation/personal/after/loss"} <= paths


def test_the_closing_value_is_that_of_the_exported_models(go: Go) -> None:
    for strategy in ("fedavg", "fedper", "fedtransfer"):
        heard = Listener()
        summary = go(strategy, 1, [heard]).summary
        of_files = {**summary["exported"], "split": "validation", "metric": "accuracy"}
        (entry,) = [e for e in summary["final"] if all(e[k] == v for k, v in of_files.items())]
        assert heard.reports[-1].value == entry["weighted-mean"], strategy


def test_between_the_rounds_a_personal_stage_is_judged_by_what_it_starts_from(go: Go) -> None:
    heard = Listener()
    run = go("fedtransfer", 2, [heard], fraction_train=0.5, evaluate_every=2)
    rows = to_rows(read_rows(run.directory))
    first, second, closing = heard.reports
    assert first.value is None  # one of three clients was not there
    assert second.value == pytest.approx(naive_validation(rows, 2, "before", "accuracy"), rel=1e-12)
    assert closing.kinds == ("personal",)
    assert closing.value == pytest.approx(naive_validation(rows, 3, "after", "accuracy"), rel=1e-12)


def row(client: str, value: float, n: int, **other: Any) -> Row:
    return Row(1, client, "validation", "personal", "before", "loss", value, n)._replace(**other)


def test_a_validation_value_by_hand() -> None:
    rows = [row("a", 1.0, 1), row("b", 4.0, 2), row("a", 9.0, 1, phase="after"), row("a", 9.0, 1, split="test")]
    assert validation_values(rows, {"a", "b"}, "before") == {"loss": (1 + 8) / 3}
    assert validation_values(rows, {"a", "b"}, "after") == {}  # b is not there
    assert validation_values(rows, {"a", "b", "c"}, "before") == {}
    assert validation_values(rows, {"a"}, "before") == {"loss": 1.0}
    assert validation_values(rows, set(), "before") == {}
    # a client that has no model of its own yet is judged by everybody's, and where a metric is not defined it is out
    both = [row("a", 5.0, 1, model="global"), *rows, row("c", 2.0, 1, model="global"), row("b", 0.5, 2, metric="auroc")]
    assert validation_values(both, {"a", "b", "c"}, "before") == {"loss": (1 + 8 + 2) / 4, "auroc": 0.5}
    assert validation_values([*rows, row("x", 7.0, 1, population="novel")], {"a", "b"}, "before") == {"loss": 3.0}


# ---- how it ends a run -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", ["in-process", "cohort"])
def test_a_run_that_is_ended_is_the_run_of_so_many_rounds(
    go: Go, backend: str, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = Listener(2), Listener(2)
    ended = go("pfedla", 9, [first, second], backend=backend, checkpoint_every=5, verbose=True)
    assert "stopped after round 2 by Listener: it is round 2" in capsys.readouterr().out
    assert ended.summary["stopped"] == {"round": 2, "by": "Listener", "why": "it is round 2"}
    assert [report.round for report in second.reports] == [1, 2, 3]
    assert second.reports[-1].closing
    assert second.ends[0].error is None
    assert (ended.directory / "checkpoints" / "round-00002").is_dir()
    short = go("pfedla", 2, backend=backend)
    assert "stopped" not in short.summary
    assert ended.summary["digest"] == short.summary["digest"]
    assert ended.summary["num-rounds"] == 2
    assert ended.summary["exported"] == short.summary["exported"]


def test_the_schedule_stays_as_it_was_planned(go: Go) -> None:
    given: dict[str, Any] = {"schedule": "cosine", "learning_rate": 0.1}
    ended, whole, short = go("fedavg", 6, [Listener(2)], **given), go("fedavg", 6, **given), go("fedavg", 2, **given)

    def after(run: Run) -> list[float]:
        rows = run.rows[(run.rows["phase"] == "after") & (run.rows["metric"] == "loss")]
        return list(rows[rows["round"] <= 3]["value"])

    assert after(ended) == after(whole)  # the closing evaluation of the one is as the third round of the other
    assert after(ended) != after(short)


def test_a_wish_after_the_last_round_or_the_closing_evaluation_ends_nothing(go: Go) -> None:
    for at in (2, 3):
        assert "stopped" not in go("local", 2, [Listener(at)]).summary


def test_an_import_path_is_made_with_its_settings_and_clients_need_not_find_it(go: Go) -> None:
    run = go("local", 9, "own_callbacks:StopAt own_callbacks:READY", stopat={"at": 1})
    assert run.summary["stopped"] == {"round": 1, "by": "own_callbacks:StopAt", "why": "by its setting"}
    assert 'callbacks = "own_callbacks:StopAt own_callbacks:READY"' in (run.directory / "config.toml").read_text()
    assert [report.round for report in READY.reports] == [1, 2]
    there: dict[str, Value] = {"callbacks": "nowhere:Mine early-stopping", "mine.depth": 3, "fedprox.mu": 0.5}
    assert without_callbacks(there) == {"fedprox.mu": 0.5}
    app = make_client_app(there)
    assert app is not None
    with pytest.raises(UserError, match='callbacks="nowhere:Mine": there is no module nowhere'):
        parse(there)


def test_a_server_app_takes_objects(settings: Callable[..., dict[str, Value]], no_pictures: None) -> None:
    heard, given = Listener(1), settings(strategy="local")
    app = fedham_flwr.make_server_app(given, callbacks=[heard])
    run_on(InProcessGrid(make_client_app(given), 2), app)
    assert [report.round for report in heard.reports] == [1, 2]
    assert heard.ends[0].summary["num-rounds"] == 1


# ---- what is refused -------------------------------------------------------------------------------------------------

REFUSED: list[tuple[Any, str]] = [
    (
        "early",
        r"^settings: callbacks='early': wanted some of 'early-stopping' and import paths 'package.module:Object'",
    ),
    ("early-stopping early-stopping", r"^settings: callbacks='.*' names 'early-stopping' twice$"),
    ("own_callbacks:Nothing", r'callbacks="own_callbacks:Nothing": the module own_callbacks has no Nothing'),
    (
        "own_callbacks:NUMBER",
        r'^callbacks="own_callbacks:NUMBER" is int without on_start, on_round, on_end, and wan',
    ),
    ("own_callbacks:OnlyRounds", r'^callbacks="own_callbacks:OnlyRounds" is the class OnlyRounds without on_start, on'),
    ("own_callbacks:make", r"gives OnlyRounds without on_start, on_end, and wanted is a callback: derive its class fr"),
    ("own_callbacks:Unmakable", r"Unmakable\" cannot be made: ValueError: not today \(own_callbacks.py, line \d+\)$"),
    ([StopAt], r"^callbacks has the class StopAt, and wanted is an object of it: StopAt\(\)$"),
    ([3], r"^callbacks has int without on_start, on_round, on_end, and wanted is a callback"),
]


@pytest.mark.parametrize(("given", "sentence"), REFUSED)
def test_what_is_no_callback_is_refused_before_anything_starts(
    go: Go, tmp_path: Path, given: Any, sentence: str
) -> None:
    with pytest.raises(UserError, match=sentence):
        go("local", 1, given)
    assert not (tmp_path / "results").exists()


def test_what_is_no_callback_is_refused_before_there_are_workers(go: Go, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedham_flwr.simulation.run_backend", lambda *_: pytest.fail("it began"))
    for name in ("own_callbacks:OnlyRounds", "own_callbacks:NUMBER"):
        with pytest.raises(UserError, match=r"and wanted is a callback: derive its class from fedham_flwr.Callback"):
            go("local", 1, name, backend="ray")


def test_a_class_of_three_methods_is_a_callback_and_one_that_derives_needs_none() -> None:
    class Nothing(Callback):
        pass

    named = chosen(parse({}), [Nothing(), Listener()])
    assert [name for name, _ in named] == ["Nothing", "Listener"]
    assert isinstance(named[0].callback, Callback)
    assert not isinstance(object(), Callback)


# ---- one that fails --------------------------------------------------------------------------------------------------


def test_one_that_fails_in_a_round_is_named_with_its_line_and_nothing_is_lost(go: Go) -> None:
    after = Listener()
    with pytest.raises(
        UserError, match=r"^the callback Failing failed: ValueError: no round \(own_callbacks.py, line \d+\); the whole"
    ):
        go("pfedla", 5, [Failing("round", 3), after], backend="cohort", checkpoint_every=10)
    directory = after.runs[0].directory
    assert [report.round for report in after.reports] == [1, 2, 3]  # it heard of the round in which the other failed
    assert after.ends[0].error == (
        "UserError: the callback Failing failed: ValueError: no round (own_callbacks.py, line "
        f"{str(after.ends[0].error).partition('line ')[2]}"
    )
    assert "raise ValueError" in (directory / "error.log").read_text()
    assert "error" in Run(directory).summary
    assert (directory / "checkpoints" / "round-00003").is_dir()
    heard = Listener()
    resumed = simulate(resume=directory, callbacks=[heard], verbose=False, backend="cohort")
    assert [(report.round, report.again) for report in heard.reports] == [
        (1, True), (2, True), (3, True), (4, False), (5, False), (6, False),
    ]  # fmt: skip
    assert heard.runs[0].done == 3
    assert resumed.summary["digest"] == go("pfedla", 5, backend="cohort").summary["digest"]


def test_one_that_fails_at_the_start_leaves_no_results(go: Go) -> None:
    heard = Listener()
    with pytest.raises(UserError, match=r"the callback Failing failed: ValueError: no start \(own_callbacks.py, line"):
        go("local", 1, [heard, Failing("start")])
    assert not heard.reports
    assert str(heard.ends[0].error).startswith("the callback Failing failed: ValueError: no start (own_callbacks.py")
    assert not (heard.runs[0].directory / "summary.json").exists()


def test_one_that_fails_at_the_end_leaves_a_whole_run(go: Go) -> None:
    heard = Listener()
    with pytest.raises(UserError, match=r"the callback Failing failed: ValueError: no end \(own_callbacks.py, line"):
        go("local", 1, [Failing("end"), heard])
    summary = Run(heard.runs[0].directory).summary
    assert "error" not in summary
    assert summary["digest"] == heard.ends[0].summary["digest"]


def test_an_answer_that_is_no_text_is_a_sentence(go: Go) -> None:
    with pytest.raises(
        UserError, match=r"^the callback Failing answered True after round 1: wanted why the run should"
    ):
        go("local", 2, [Failing("answer")])


def test_without_checkpoints_it_ends_too(go: Go) -> None:
    assert go("local", 9, [Listener(1)], checkpoint_every=0).summary["stopped"]["round"] == 1


def test_a_failure_elsewhere_is_told_at_the_end(
    go: Go, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    heard = Listener()
    monkeypatch.setattr(RoundStrategy, "_evaluate", lambda *_: (_ for _ in ()).throw(UserError("no evaluation")))
    with pytest.raises(UserError, match="no evaluation"):
        go("local", 2, [heard, Failing("end")])
    assert heard.ends[0].error == "UserError: no evaluation"
    assert (
        "at the end of the run also: the callback Failing failed: ValueError: no end (own_callbacks.py" in caplog.text
    )
    assert [report.round for report in heard.reports] == [1, 2]


# ---- continued -------------------------------------------------------------------------------------------------------


def test_settings_of_a_callback_that_is_not_wanted_any_more_are_left_out(go: Go) -> None:
    ended = go("fedper", 4, "own_callbacks:StopAt", stopat={"at": 2})
    again: dict[str, Any] = {"resume": ended.directory, "verbose": False}
    with pytest.raises(UserError, match=r"has come to its end: own_callbacks:StopAt stopped it after round 2 \(by its"):
        simulate(**again)
    later = simulate(**again, stopat={"at": 3})
    assert later.summary["stopped"]["round"] == 3
    assert later.summary["resumed-from"] == [2]
    last = simulate(**again, callbacks="")
    assert "stopped" not in last.summary
    assert last.summary["digest"] == go("fedper", 4).summary["digest"]


def test_a_wish_that_a_continued_run_hears_again_ends_it_at_once(go: Go) -> None:
    ended = go("fedper", 4, [Listener(2)])
    heard = Listener(1)  # would have ended it earlier
    again = simulate(resume=ended.directory, callbacks=[heard], verbose=False)
    assert again.summary["stopped"] == {"round": 2, "by": "Listener", "why": "it is round 1"}
    assert again.summary["digest"] == ended.summary["digest"]
    assert [(report.round, report.again, report.closing) for report in heard.reports] == [
        (1, True, False), (2, True, False), (3, False, True),
    ]  # fmt: skip


THERE = """
import json
from fedham_flwr import simulate
from own_callbacks import Listener

heard = Listener(2)
given = {short!r} | dict(num_server_rounds=5, backend="ray", engine={engine!r})
run = simulate("fedper", callbacks=[heard, "early-stopping"], **given)
with open("told.json", "w") as file:
    json.dump([[report.value for report in heard.reports], run.summary["stopped"], run.summary["digest"]], file)
"""


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["cohort", "one-by-one"])
def test_an_object_is_told_of_a_run_whose_clients_are_in_other_processes(go: Go, tmp_path: Path, engine: str) -> None:
    root, here = Path(__file__).resolve().parents[1], Listener(2)
    alone = go("fedper", 5, [here, "early-stopping"], backend="cohort" if engine == "cohort" else "in-process")
    environment = {**os.environ, "PYTHONPATH": f"{root}{os.pathsep}{root / 'tests'}"}
    program = [sys.executable, "-c", THERE.format(engine=engine, short=SHORT)]
    subprocess.run(program, check=True, cwd=tmp_path, env=environment, timeout=300)
    values, stopped, digest = json.loads((tmp_path / "told.json").read_text())
    assert values == [report.value for report in here.reports]
    assert stopped == alone.summary["stopped"]
    assert engine == "cohort" or digest == alone.summary["digest"]  # which clients are stacked decides the rounding
