"""The folder of a study: what was asked, what was tuned, and every run under its key.

    study.toml          as it was given last
    plan.json           what it means: methods, tasks, seeds, tuning
    tuning.json         what was tried for each method and task, and what was chosen
    runs/<key>/run.json what came of a run; it is written last, so that a run without it is not done
    runs/<key>/...      the run's directory

Every file is written whole and renamed. Runs that the study does not want any more stay, and may be wanted again.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

from fedham_flwr.core.errors import UnwritableError, UserError, cause, reason
from fedham_flwr.core.files import replacing, sync
from fedham_flwr.reporting.formats import json_text
from fedham_flwr.resume.writer import only_writer
from fedham_flwr.study.planned import Plan
from fedham_flwr.study.runs import RunResult, RunSpec, State
from fedham_flwr.study.same import check_same

STUDY, PLAN, TUNING, RUN = "study.toml", "plan.json", "tuning.json", "run.json"
RUNS = "runs"


class Store:
    """Reads and writes the folder of a study.

    Args:
        folder: that of the study.
        retry_failed: runs that have failed count as not done.
    """

    def __init__(self, folder: Path, retry_failed: bool = False) -> None:
        self.folder, self._retry_failed = folder, retry_failed

    def run_folder(self, key: str) -> Path:
        """Where a run with this key lies; `results-dir` of the run.

        Args:
            key: of the run.
        """
        return self.folder / RUNS / key

    def read_result(self, key: str) -> RunResult | None:
        """What came of a run; None if it is not done, or what is written of it is damaged.

        Args:
            key: of the run.
        """
        told = _read_json(self.run_folder(key) / RUN)
        try:
            result = _result(told)
        except (KeyError, TypeError, ValueError, AttributeError):
            return None
        again = self._retry_failed and result.state == "failed"
        there = told["key"] == key and _is_there(self.run_folder(key), result)
        return result if there and not again else None

    def write_result(self, spec: RunSpec, result: RunResult) -> None:
        """Note what came of a run.

        Args:
            spec: the run.
            result: its directory is below `run_folder`, or relative to it.

        Raises:
            UnwritableError: the folder cannot be written.
        """
        told = {**vars(spec), "settings": dict(spec.settings), **vars(result), "also": []}
        told["steps"] = [list(step) for step in result.steps]
        if result.directory is not None:
            place = self.run_folder(spec.key)
            inside = result.directory.relative_to(place) if result.directory.is_absolute() else result.directory
            told["directory"] = inside.as_posix()
        self._write_run(spec.key, told)

    def claim(self, spec: RunSpec) -> None:
        """Note that a run which is done is also that of another label: tables find it under both.

        Args:
            spec: a run; nothing is noted of one that is not done.

        Raises:
            UnwritableError: the folder cannot be written.
        """
        if self.read_result(spec.key) is None:
            return
        told = _read_json(self.run_folder(spec.key) / RUN)
        mine = [spec.role, spec.method, spec.task, spec.trial]
        known = [[told[name] for name in ("role", "method", "task", "trial")], *told.get("also", [])]
        if mine not in known:
            self._write_run(spec.key, {**told, "also": [*told.get("also", []), mine]})

    def _write_run(self, key: str, told: Mapping[str, Any]) -> None:
        self._write(f"{RUNS}/{key}/{RUN}", json_text(told, indent=2) + "\n")

    def read_tuning(self) -> list[dict[str, Any]]:
        """What was tried so far, as `write_tuning` wrote it; nothing if that is damaged, and the runs tell it anew."""
        told = _read_json(self.folder / TUNING)
        return [each for each in told if isinstance(each, dict)] if isinstance(told, list) else []

    def write_tuning(self, told: Sequence[Mapping[str, Any]]) -> None:
        """Note what was tried.

        Args:
            told: an entry of each method and task.

        Raises:
            UnwritableError: the folder cannot be written.
        """
        self._write(TUNING, json_text(list(told), indent=2) + "\n")

    def read_plan(self) -> dict[str, Any]:
        """What `plan.json` says; empty if there is none, or it is damaged."""
        told = _read_json(self.folder / PLAN)
        return told if isinstance(told, dict) else {}

    def write_metric(self, name: str) -> None:
        """Note by which metric the study compares, once that is known.

        Args:
            name: of the metric.

        Raises:
            UnwritableError: the folder cannot be written.
        """
        if (told := self.read_plan()).get("metric") != name:
            self._write(PLAN, json_text({**told, "metric": name}, indent=2) + "\n")

    def all_runs(self) -> Iterator[dict[str, Any]]:
        """Every `run.json` that is whole, whether the study still wants the run or not."""
        for folder in sorted((self.folder / RUNS).glob("*")):
            if self.read_result(folder.name) is not None:
                yield _read_json(folder / RUN)

    def forget_failed(self) -> int:
        """Take back what is noted of runs that have failed, so that they are done again; how many there are."""
        failed = [told["key"] for told in self.all_runs() if told["state"] == "failed"]
        for key in failed:
            (self.run_folder(key) / RUN).unlink(missing_ok=True)
        return len(failed)

    def write_plan(self, plan: Plan) -> None:
        """Note what was asked for, and what that means.

        Args:
            plan: of the study.

        Raises:
            UnwritableError: the folder cannot be written.
        """
        told = {**plan.told(), "metric": self.read_plan().get("metric")}
        self._write(PLAN, json_text(told, indent=2) + "\n")
        self._write(STUDY, plan.text)

    def check(self, plan: Plan) -> None:
        """Refuse a folder that is not this study's.

        Args:
            plan: of the study.

        Raises:
            UserError: it is another study's, or no study's, and nothing is written.
        """
        check_same(self.folder, self.read_plan(), plan)

    def _write(self, name: str, text: str) -> None:
        file = self.folder / name
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            with replacing(file) as part:
                part.write_text(text, encoding="utf-8")
                sync(part)
        except OSError as error:
            raise UnwritableError(f"the study cannot be written to {self.folder}: {reason(error)}") from error


@contextlib.contextmanager
def opened(folder: str | Path, plan: Plan) -> Iterator[Store]:
    """The folder of a study, made if it is not there, for this process alone.

    Args:
        folder: its place.
        plan: of the study.

    Raises:
        UserError: it is another study's, another process is at work in it, or it cannot be written.
    """
    store = Store(Path(os.path.abspath(os.path.expanduser(folder))))
    store.check(plan)
    try:
        (store.folder / RUNS).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{store.folder} cannot be made ({cause(error)}): wanted another --output") from error
    with only_writer(store.folder, "study"):
        store.check(plan)
        store.write_plan(plan)
        yield store


def _is_there(folder: Path, result: RunResult) -> bool:
    """Whether the directory of a run is; that of a complete one has a summary, without which no table has the run."""
    if result.directory is None:
        return True
    run = folder / result.directory
    return run.is_dir() and (result.state != "complete" or _read_json(run / "summary.json") is not None)


def _read_json(file: Path) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _result(told: Any) -> RunResult:
    """What came of a run, out of its run.json."""
    if told["state"] not in get_args(State):
        raise ValueError(told["state"])
    steps = tuple((int(number), math.nan if value is None else float(value)) for number, value in told["steps"])
    directory = None if told["directory"] is None else Path(str(told["directory"]))
    return RunResult(
        told["state"], str(told["error"]), directory, steps, float(told["seconds"]), told["metric"], told["higher"]
    )
