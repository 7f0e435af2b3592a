"""A run's directory has one writer: a second is told who has it, and the lock of a killed process holds nobody up."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from fedham_flwr import simulate
from fedham_flwr.cli import run_command
from fedham_flwr.core.errors import UserError
from fedham_flwr.resume import writer
from fedham_flwr.resume.writer import FILE, check_free, only_writer

HOLD = """
import sys, time
from pathlib import Path
from fedham_flwr.resume.writer import only_writer
with only_writer(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_another_process_is_refused_and_told_who_writes_until_that_one_dies(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        since = json.loads((tmp_path / FILE).read_text())["since"]
        sentence = (
            f"{tmp_path} is the directory of a run that is going on: process {other.pid} on {socket.gethostname()} has "
            f"been writing to it since {since}; wait for its end, or stop it first"
        )
        for again in (only_writer(tmp_path).__enter__, lambda: check_free(tmp_path)):
            with pytest.raises(UserError) as raised:
                again()
            assert str(raised.value) == sentence
        other.send_signal(signal.SIGKILL)
        other.wait()
    assert (tmp_path / FILE).exists()  # as the killed process left it, without its lock
    with only_writer(tmp_path):
        assert json.loads((tmp_path / FILE).read_text())["process"] == os.getpid()
    assert not (tmp_path / FILE).exists()


def test_of_many_at_once_one_gets_it(tmp_path: Path) -> None:
    there, outcomes = threading.Barrier(8), []

    def go() -> None:
        there.wait()
        try:
            with only_writer(tmp_path):
                outcomes.append("held")
                done.wait(10)
        except UserError as error:
            outcomes.append(str(error))
        if len(outcomes) == 8:
            done.set()

    done = threading.Event()
    threads = [threading.Thread(target=go) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert outcomes.count("held") == 1
    assert all(f"process {os.getpid()} on " in text for text in outcomes if text != "held")


@pytest.mark.parametrize(
    ("error", "why"),
    [
        (OSError(errno.ENOLCK, os.strerror(errno.ENOLCK)), "No locks available"),
        (ModuleNotFoundError("no fcntl"), "no fcntl"),
    ],
)
def test_a_file_system_without_locks_is_said_and_gone_on_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, error: Exception, why: str
) -> None:
    def take(_: int) -> None:
        raise error

    monkeypatch.setattr(writer, "_take", take)
    with only_writer(tmp_path), pytest.raises(UserError, match="going on"), only_writer(tmp_path):
        pass  # in one process it is noticed all the same
    (line,) = caplog.messages
    assert line.startswith(f"{tmp_path} cannot be locked ({why}): see to it that no other run")


def test_a_file_that_its_holder_takes_away_between_two_steps_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who opened the file before the holder removed it must not believe that the lock of that file means anything."""
    opened: list[int] = []

    def take(number: int) -> None:
        fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
        opened.append(number)
        if len(opened) < 3:
            (tmp_path / FILE).unlink()
        if len(opened) == 2:
            (tmp_path / FILE).touch()  # somebody else's

    monkeypatch.setattr(writer, "_take", take)
    with only_writer(tmp_path):
        assert len(opened) == 3
        assert json.loads((tmp_path / FILE).read_text())["process"] == os.getpid()


# ---- runs ----------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("workplace")
def test_a_run_that_is_going_on_is_not_resumed_and_is_not_hurt(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from strategies.averaging import AveragingStrategy

    short: dict[str, Any] = {"samples_per_client": 40, "device": "cpu", "verbose": False, "num_server_rounds": 3}
    plain = simulate("fedavg", clients=3, checkpoint_every=1, **short)
    merge, said = AveragingStrategy.merge, []

    def resumed(self: AveragingStrategy, number: int, uploads: Any) -> None:
        merge(self, number, uploads)
        (run,) = {*(tmp_path / "results" / "fedavg").iterdir()} - {plain.directory}
        assert run_command(["--resume", str(run), "--backend", "in-process"]) == 1
        said.append((capsys.readouterr().err, f"error: {run} is the directory of a run that is going on: process "))
        with pytest.raises(UserError, match="going on"):
            simulate(resume=run, verbose=False)

    monkeypatch.setattr(AveragingStrategy, "merge", resumed)
    whole = simulate("fedavg", clients=3, checkpoint_every=1, **short)
    assert len(said) == 3
    assert all(text.startswith(wanted) and text.count("\n") == 1 for text, wanted in said)
    assert whole.summary["digest"] == plain.summary["digest"]
    assert not (whole.directory / FILE).exists()
    assert run_command(["--resume", str(plain.directory), "--backend", "in-process"]) == 1
    assert "has come to its end, after 3 rounds" in capsys.readouterr().err  # and nobody holds it
