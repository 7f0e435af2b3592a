"""Searches that are taken over from another folder: they are the same, or they are refused in one sentence."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fedham_flwr.cli import main
from fedham_flwr.core.errors import UserError
from fedham_flwr.study.agenda import Agenda
from fedham_flwr.study.outlook import look
from fedham_flwr.study.plan import Plan, read_plan
from fedham_flwr.study.runs import RunResult
from fedham_flwr.study.store import Store, opened
from fedham_flwr.study.taken import with_tuning

TEXT = """
name = "s"
methods = ["fedper", "fedprox"]
floors = false
clients = 3
seeds = {seeds}

[settings]
batch-size = {batch}

[tune]
trials = {trials}
"""


@pytest.fixture
def plan(tmp_path: Path) -> Callable[..., Plan]:
    def make(seeds: int = 2, batch: int = 10, trials: int = 7) -> Plan:
        (tmp_path / "study.toml").write_text(TEXT.format(seeds=seeds, batch=batch, trials=trials))
        return read_plan(tmp_path / "study.toml")

    return make


def tuned(asked: Plan, folder: Path, half: bool = False) -> Agenda:
    """Carry the searches out, with metrics that depend on the learning rate and runs that fail and are pruned."""
    with opened(folder, asked) as store:
        agenda = Agenda(asked, store)
        agenda.advance()
        while specs := [one for one in agenda.ready([]) if one.role == "tuning"]:
            if half and any(tuning.over for tuning in agenda.tunings.values()):
                break
            spec = specs[0]
            value = 1.0 - abs(float(spec.settings["learning-rate"]) - 0.03)
            steps = tuple((at, value * at / 20) for at in (5, 10, 15, 20))
            found = RunResult("complete", "", None, steps, 1.0, "accuracy", True)
            if spec.trial == 2:
                found = RunResult("failed", "diverged", None, (), 1.0, "accuracy", True)
            elif spec.trial > 4 and agenda.stops(spec.key, steps[:2]):
                found = RunResult("pruned", "", None, steps[:2], 1.0, "accuracy", True)
            store.write_result(spec, found)
            agenda.done(spec, found)
            agenda.advance()
        return agenda


def test_what_is_chosen_is_the_same_and_nothing_is_tuned(plan: Callable[..., Plan], tmp_path: Path) -> None:
    before = tuned(plan(), tmp_path / "first")
    more = with_tuning(plan(seeds=5), tmp_path / "first")
    store = Store(tmp_path / "second")
    store.folder.mkdir()
    agenda = Agenda(more, store)
    assert agenda.advance() == []
    ready = agenda.ready([])
    assert {spec.role for spec in ready} == {"report"}
    assert len(ready) == 2 * 5
    for pair, tuning in before.tunings.items():
        assert agenda.tunings[pair].chosen == tuning.chosen
        mine, theirs = agenda.tunings[pair].entry(), tuning.entry()
        strip = [{**trial, "runs": []} for trial in theirs["trials"]]
        assert mine == {**theirs, "trials": strip}
        assert {trial["state"] for trial in strip} >= {"complete", "failed"}
    ahead = look(more, store)
    assert sum(count.tuning for count in ahead.counts.values()) == 0
    assert "tuned    2 searches taken from --tuning" in list(ahead.lines(2))
    assert json.loads((store.folder / "tuning.json").read_text())[0]["chosen"] is not None
    assert more.told()["tuned-at"] == json.loads((tmp_path / "first" / "plan.json").read_text()).get("commit", "")


def test_a_search_that_is_not_over_goes_on_here(plan: Callable[..., Plan], tmp_path: Path) -> None:
    tuned(plan(), tmp_path / "first", half=True)  # one is over, the other is not
    more = with_tuning(plan(), tmp_path / "first")
    assert len(more.taken) == 1
    store = Store(tmp_path / "second")
    store.folder.mkdir()
    agenda = Agenda(more, store)
    agenda.advance()
    assert {spec.role for spec in agenda.ready([])} == {"report", "tuning"}


def damage(folder: Path, change: Callable[[Any], Any], name: str = "tuning.json") -> None:
    told = json.loads((folder / name).read_text())
    change(told)
    (folder / name).write_text(json.dumps(told))


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        (
            lambda f: (f / "tuning.json").unlink(),
            r"tuning.json cannot be read \(No such file .*wanted the folder of",
        ),
        (lambda f: (f / "tuning.json").write_text("{"), r"tuning.json cannot be read \(it is no JSON\)"),
        (lambda f: damage(f, lambda t: t[0].pop("task")), r"is damaged \(KeyError: 'task'\)"),
        (lambda f: damage(f, lambda t: t[0]["trials"].pop()), r"the search of fedper on digits is damaged: IndexError"),
        (
            lambda f: damage(f, lambda t: t[1]["trials"][1]["values"].update({"learning-rate": 0.5})),
            r"trial 1 of fedprox on digits tried .*0.5.*, and here it would try .*has to be made anew",
        ),
        (lambda f: damage(f, lambda t: t["tune"].update(trials=9), "plan.json"), r"with \[tune\] trials = 9 \(now 7\)"),
        (
            lambda f: damage(f, lambda t: t["settings"].update({"batch-size": 99}), "plan.json"),
            r"is of a study with \[settings\] batch-size = 99 \(now 10\)",
        ),
    ],
)
def test_a_folder_that_is_not_this_studys_is_refused(
    plan: Callable[..., Plan], tmp_path: Path, changed: Callable[[Path], Any], sentence: str
) -> None:
    tuned(plan(), tmp_path / "first")
    changed(tmp_path / "first")
    with pytest.raises(UserError, match=sentence):
        with_tuning(plan(), tmp_path / "first")


def test_a_study_that_tunes_nothing_has_nothing_to_take(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "study.toml").write_text('name = "s"\nmethods = ["fedper"]\nclients = 3\n')
    monkeypatch.chdir(tmp_path)
    assert main(["study", "study.toml", "--tuning", "first", "--dry-run"]) == 1
    assert capsys.readouterr().err == "error: --tuning first: the study s has no table [tune], and tunes nothing\n"
