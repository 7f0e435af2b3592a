"""A server that is killed with SIGKILL goes on from its last whole checkpoint, whenever that was."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from fedham_flwr.client_app import make_client_app
from fedham_flwr.core import files
from fedham_flwr.resume import checkpoints
from fedham_flwr.resume.checkpoints import Checkpoint
from fedham_flwr.runners.in_process import InProcessGrid, run_on
from fedham_flwr.server_app import make_server_app
from fedham_flwr.settings import Value

Settings = Callable[..., dict[str, Value]]
HERE = Checkpoint(7, "t", "fedper", "digits-cnn", ("a", "b"), ("a",), (), (), 9, (3,))


pytestmark = pytest.mark.usefixtures("no_pictures")


def in_a_process(work: Callable[[], None], kill: Callable[[], bool] = lambda: False) -> int:
    """Do the work in a forked process, which is killed as soon as `kill` says so; its exit code."""
    process = multiprocessing.get_context("fork").Process(target=work)
    process.start()
    while process.is_alive():
        if kill():
            process.kill()
        process.join(0.002)
    process.join()
    assert process.exitcode is not None
    return process.exitcode


def federate(chosen: dict[str, Value]) -> Path:
    """Run with four clients in this process; the run's directory."""
    run_on(InProcessGrid(make_client_app(chosen), 4), make_server_app(chosen))
    return newest_run(chosen)


def newest_run(chosen: dict[str, Value]) -> Path:
    return max(Path(str(chosen["results-dir"])).glob("*/*"), key=lambda path: path.stat().st_ctime_ns)


@pytest.mark.parametrize("bank_memory", [16.0, 0.0], ids=["memory", "disk"])
def test_killed_at_random_moments_a_run_comes_to_the_same_end(
    settings: Settings, tmp_path: Path, bank_memory: float
) -> None:
    few: dict[str, Value] = {"num_server_rounds": 8, "samples_per_client": 64, "checkpoint_every": 1}
    chosen = settings(strategy="pfedla", bank_memory=bank_memory, **few)
    whole = json.loads((federate(chosen) / "summary.json").read_text())
    chosen["results-dir"] = str(tmp_path / "killed")
    draw, given = random.Random(5), dict(chosen)
    for target in (1, 2, 4, 6):
        wait = draw.uniform(0.0, 0.06)  # a round takes about as long

        def kill(target: int = target, wait: float = wait) -> bool:
            found = [int(path.name[6:]) for path in (tmp_path / "killed").glob("*/*/checkpoints/round-*")]
            if max(found, default=0) < target:
                return False
            time.sleep(wait)
            return True

        assert in_a_process(lambda: federate(given), kill) == -signal.SIGKILL
        given["resume"] = str(newest_run(chosen))
    assert in_a_process(lambda: federate(given)) == 0
    left = json.loads((newest_run(chosen) / "summary.json").read_text())
    assert (left["digest"], left["bytes"], left["num-rounds"]) == (whole["digest"], whole["bytes"], 8)
    assert len(left["resumed-from"]) == 4


@pytest.mark.parametrize("changes", [True, False], ids=["new", "same"])
@pytest.mark.parametrize("function", ["fsync", "link", "rename", "replace", "rmdir", "unlink", "mkdir"])
def test_killed_at_any_step_of_writing_one_there_is_always_a_whole_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, function: str, changes: bool
) -> None:
    """The n-th call of each function that changes the disk, for all n; the state is another each time, or the same."""
    (tmp_path / "clients").mkdir()

    def save(number: int) -> None:
        """A checkpoint, and what a run writes at its end."""
        value = number if changes else 0
        for client in ("a", "b") if changes or number == 1 else ():
            files.write_tensors(tmp_path / "clients" / f"{client}.safetensors", {"w": torch.tensor(value)}, {})
        here = Checkpoint(**{**vars(HERE), "round": number})
        state = {"s": torch.full((100,), value)}
        checkpoints.save(tmp_path, here, state, tmp_path / "clients")
        label = {"strategy": here.strategy, "model": here.model}
        checkpoints.write_state(tmp_path / "server.safetensors", state, label, tmp_path)

    for number in (1, 2):
        save(number)
    real, number, calls = getattr(os, function), 3, 1
    while True:
        counted = iter(range(1, calls + 1))

        def step(*given: object, _counted: object = counted, **named: object) -> object:
            if next(_counted, None) == calls:  # type: ignore[call-overload]  # noqa: B023
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*given, **named)

        monkeypatch.setattr(os, function, step)
        code = in_a_process(lambda number=number: save(number))  # type: ignore[misc]
        monkeypatch.setattr(os, function, real)
        there, folder = checkpoints.newest(tmp_path)
        assert there.round in (number - 1, number)
        state = {**load_file(folder / "server.safetensors"), **load_file(folder / "clients" / "b.safetensors")}
        value = there.round if changes else 0
        assert (state["s"].unique().item(), state["w"].item()) == (value, value)
        left = load_file(tmp_path / "server.safetensors")["s"].unique().item()
        assert left in (range(1, there.round + 1) if changes else (0,))  # whole, of this end or of one before
        if code == 0:
            break
        number, calls = there.round + 1, calls + 1
    assert calls > 1, "the function is never called"
    assert len(list((tmp_path / "checkpoints").iterdir())) == checkpoints.KEPT
