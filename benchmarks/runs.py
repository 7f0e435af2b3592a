"""Runs of a comparison: side by side as processes of one thread, not repeated when they are there, and read again.

python benchmarks/runs.py SETTINGS CLIENTS    # one run, in this process; SETTINGS as JSON
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Mapping
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from common import ROOT  # noqa: F401  # the project need not be installed

from fedham_flwr.core.errors import UserError
from fedham_flwr.settings import Value, parse

RESERVED: Mapping[str, str] = {
    "dataset": "--data",
    "num-server-rounds": "--rounds",
    "results-dir": "--folder",
    "seed": "--seeds",
    "strategy": "--methods",
}
"""Settings that `-c` must not change, since the card says what they were."""


class Case(NamedTuple):
    """Which run, among those of a paper."""

    split: str
    method: str
    seed: int


class Setup(NamedTuple):
    """How a run is made."""

    settings: Mapping[str, Value]
    """Those that differ from the defaults, but the results' folder and, if there is `after`, `resume`."""
    clients: int
    after: Case | None = None
    """The run whose result this one starts from; it stands before this one in the plan."""


@dataclass(frozen=True)
class Result:
    """What a finished run left.

    Attributes:
        path: its directory.
        clients: how many trained.
        accuracy: (round, phase) -> test accuracy of each client that trained.
        novel: phase -> test accuracy of each client that did not.
        bytes: per round of all clients, up and down, without evaluations; 0 if there was no round.
    """

    path: Path
    clients: int
    accuracy: Mapping[tuple[int, str], Mapping[str, float]]
    novel: Mapping[str, Mapping[str, float]]
    bytes: Mapping[str, float]

    @property
    def closing(self) -> int:
        """The number of the closing evaluation, one more than that of the last training round."""
        return max(number for number, _ in self.accuracy)

    @property
    def mixes(self) -> bool:
        """Whether the method leaves mixing weights."""
        return (self.path / "mixing").is_dir()

    def at(self, number: int, phase: str) -> float:
        """Mean over clients in percent, in a round."""
        return 100 * float(np.mean(list(self.accuracy[number, phase].values())))

    def mean(self, phase: str, last: int = 0) -> float:
        """Mean over clients in percent, in the closing evaluation or over so many of the last training rounds."""
        rounds = range(self.closing - last, self.closing) if last else [self.closing]
        return float(np.mean([self.at(number, phase) for number in rounds]))

    def ends(self, phase: str) -> list[float]:
        """The clients in the closing evaluation, in percent, the worst first."""
        return sorted(100 * value for value in self.accuracy[self.closing, phase].values())


def overrides(text: str, reserved: Mapping[str, str]) -> dict[str, Value]:
    """The settings that are given for all runs.

    Args:
        text: KEY=VALUE ..., values as in JSON.
        reserved: setting -> the option that it is to be changed by.

    Raises:
        SystemExit: a value is not JSON, or the setting has an option of its own.
    """
    found: dict[str, Value] = {}
    for pair in text.split():
        key, _, value = pair.partition("=")
        if key in reserved:
            raise SystemExit(f"-c {pair}: this setting is not for -c; use {reserved[key]}")
        try:
            found[key] = json.loads(value)
        except json.JSONDecodeError:
            raise SystemExit(f'-c {pair}: wanted key=value with a value as in JSON, a text as "text"') from None
    return found


def check(plan: Mapping[Case, Setup]) -> None:
    """Refuse settings that no run would take, before the first one starts.

    Raises:
        SystemExit: a key or value is wrong.
    """
    for setup in plan.values():
        try:
            parse(setup.settings)
        except UserError as error:
            raise SystemExit(str(error)) from None


def run_all(plan: Mapping[Case, Setup], folder: Path, processes: int) -> dict[Case, Result]:
    """Run what is not there yet, some runs side by side, and read everything.

    Args:
        plan: the runs; one that starts from another stands behind it.
        folder: below it each run has a folder of its own.
        processes: runs side by side.

    Raises:
        SystemExit: a run failed, or not every client took part in every round.
    """
    found: dict[Case, Future[Result]] = {}

    def one(case: Case) -> Result:
        settings, clients, after = plan[case]
        place = folder / "-".join(map(str, case))
        given = {**settings, "results-dir": str(place)}
        if after is not None:
            given["resume"] = str(found[after].result().path)  # another one if that run was made anew, and only then
        text = json.dumps(given, sort_keys=True)
        if not _finished(place, text):
            (place / "given.json").unlink(missing_ok=True)  # it stands for the newest run below this folder
            _run(case, text, clients)
            (place / "given.json").write_text(text)
        return read(_directory(place))

    with ThreadPoolExecutor(processes) as pool:
        # Runs are begun in the order of the plan, so one that waits for another waits for one that has begun.
        for case in plan:
            found[case] = pool.submit(one, case)
        try:
            wait(found.values(), return_when=FIRST_EXCEPTION)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)  # after a failure or an interrupt no other run begins
        return {case: future.result() for case, future in found.items()}


def _run(case: Case, text: str, clients: int) -> None:
    began = time.perf_counter()
    environment = os.environ | {"OMP_NUM_THREADS": "1", "FLWR_TELEMETRY_ENABLED": "0"}
    command = [sys.executable, __file__, text, str(clients)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        raise SystemExit(f"{case} ended with {done.returncode}\n{done.stderr[-3000:]}")
    print(f"{' '.join(map(str, case))}: {time.perf_counter() - began:.0f} s", flush=True)


def _finished(place: Path, text: str) -> bool:
    """Whether this very run is there and ended well."""
    given = place / "given.json"
    return given.exists() and given.read_text() == text and any(place.glob("*/*/summary.json"))


def _directory(place: Path) -> Path:
    """The directory of the newest run below a folder."""
    return max(place.glob("*/*/summary.json"), key=lambda file: file.stat().st_mtime).parent


def read(path: Path) -> Result:
    """The result of a run.

    Raises:
        SystemExit: the run ended early, or a client is missing from some round, and with it from the means; or a
            client has two test accuracies for one phase of a round, so that a mean would count it twice.
    """
    from fedham_flwr.core.records import NOVEL
    from fedham_flwr.reporting.run_directory import read_rows, to_rows

    summary = json.loads((path / "summary.json").read_text())
    if "error" in summary or summary["failures"]:
        raise SystemExit(f"{path}: not every client took part in every round, see rounds.jsonl; remove it and repeat")
    accuracy: dict[tuple[int, str], dict[str, float]] = defaultdict(dict)
    novel: dict[str, dict[str, float]] = defaultdict(dict)
    for row in to_rows(read_rows(path)):
        if (row.split, row.metric) == ("test", "accuracy"):
            if row.population == NOVEL:
                novel[row.phase][row.client] = row.value
                continue
            if row.client in accuracy[row.round, row.phase]:
                raise SystemExit(f"{path}: client {row.client} has two models {row.phase} round {row.round}'s training")
            accuracy[row.round, row.phase][row.client] = row.value
    trained = len(accuracy[max(accuracy)])
    return Result(path, trained, accuracy, novel, _traffic(path, summary["num-rounds"]))


def _traffic(path: Path, rounds: int) -> dict[str, float]:
    """Bytes of a training round: of all its exchanges but evaluations, and without those after the last one."""
    exchanges: list[dict[str, Any]] = [json.loads(line) for line in (path / "rounds.jsonl").read_text().splitlines()]
    counted = [e for e in exchanges if e["kind"] != "evaluate" and e["round"] <= rounds]
    return {way: sum(e[f"bytes-{way}"] for e in counted) / max(1, rounds) for way in ("up", "down")}


def run_one(text: str, clients: int) -> None:
    """A run, in this process.

    Args:
        text: its settings as JSON.
        clients: how many.
    """
    from fedham_flwr.client_app import make_client_app
    from fedham_flwr.runners.in_process import InProcessGrid, run_on
    from fedham_flwr.server_app import make_server_app

    settings = json.loads(text)
    run_on(InProcessGrid(make_client_app(settings), clients), make_server_app(settings))


if __name__ == "__main__":
    run_one(sys.argv[1], int(sys.argv[2]))
