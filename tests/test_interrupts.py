"""Ctrl-C at any moment: the exit code 130, a line, no stack, and no directory that is not named."""

from __future__ import annotations

import os
import signal
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Message, RecordDict
from interrupting import interrupt

from fedham_flwr.client_app import make_client_app
from fedham_flwr.core.errors import UserError
from fedham_flwr.core.interrupts import Interruptible, raise_if_seen, seen
from fedham_flwr.ends import explained
from fedham_flwr.runners.in_process import InProcessGrid


@pytest.fixture(autouse=True)
def _pythons_handler() -> Iterator[None]:
    """As in a program that was started in the foreground: a shell has those in the background ignore Ctrl-C."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def press() -> None:
    signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)


def test_an_interrupt_inside_an_import_comes_after_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "import signal, time\nsignal.raise_signal(signal.SIGINT)\ntime.sleep(0.12)\nDONE = 1\n"
    (tmp_path / "slow_to_import.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    before = signal.getsignal(signal.SIGINT)

    def work() -> None:
        with Interruptible():
            import slow_to_import  # type: ignore[import-not-found]

            assert seen()
            assert slow_to_import.DONE == 1
            time.sleep(10)

    with pytest.raises(KeyboardInterrupt):
        work()
    assert sys.modules["slow_to_import"].DONE == 1
    assert not seen()
    assert signal.getsignal(signal.SIGINT) is before


def test_an_interrupt_that_python_swallows_comes_again(capsys: pytest.CaptureFixture[str]) -> None:
    class Careless:
        def __del__(self) -> None:
            press()
            time.sleep(0.01)

    def work() -> None:
        with Interruptible():
            Careless()
            time.sleep(10)

    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        work()
    assert time.monotonic() - began < 5
    assert capsys.readouterr().err == ""


def test_any_error_after_an_interrupt_is_the_interrupt(tmp_path: Path) -> None:
    def work(error: Exception) -> None:
        with Interruptible(), Interruptible():  # as of `fedham` and of `fedham run`
            try:
                press()
                time.sleep(10)
            except KeyboardInterrupt:
                with pytest.raises(KeyboardInterrupt):
                    raise_if_seen()
                assert isinstance(explained(error, "fedavg", tmp_path), KeyboardInterrupt)
                raise error from None

    for error in (UserError("model cannot be imported"), AttributeError("module 'numpy' has no attribute 'intp'")):
        with pytest.raises(KeyboardInterrupt):
            work(error)
    with pytest.raises(AttributeError), Interruptible():
        raise AttributeError
    raise_if_seen()  # what was is over


def test_a_client_does_not_fail_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def opened(*_: Any) -> None:
        try:
            press()
            time.sleep(10)
        except KeyboardInterrupt:
            raise AttributeError("module 'numpy' has no attribute 'intp'") from None

    monkeypatch.setattr("fedham_flwr.client_app.open_data", opened)
    grid = InProcessGrid(make_client_app({"device": "cpu"}), 2)

    def ask() -> None:
        with Interruptible():
            grid.send_and_receive([Message(RecordDict(), next(iter(grid.contexts)), "query", group_id="0")])

    with pytest.raises(KeyboardInterrupt):
        ask()


def test_elsewhere_than_in_the_main_thread_nothing_is_taken_over() -> None:
    found: list[object] = []

    def work() -> None:
        with Interruptible():
            found.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [signal.getsignal(signal.SIGINT)]


# ---- whole processes -----------------------------------------------------------------------------------------------

NOTEBOOK = """
    from fedham_flwr import simulate
    try:
        print("begins", flush=True)
        simulate("fedper", clients=3, num_server_rounds=2000, samples_per_client=40, device="cpu", verbose=False)
    except KeyboardInterrupt:
        print("interrupted")
        raise SystemExit(130)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("backend", "first", "step"),
    [("in-process", 0.05, 0.8), ("cohort", 0.45, 0.8), ("ray", 0.5, 1.5)],
)
def test_at_any_moment_of_the_first_ten_seconds(tmp_path: Path, backend: str, first: float, step: float) -> None:
    after, faults = first, []
    step *= 1 if os.environ.get("FEDHAM_SWEEP_EVERY") == "1" else 3
    while after <= 10.0:
        done = interrupt(tmp_path / f"{after:.2f}", after, "--backend", backend, "--num-supernodes", "3")
        if done.fault:
            faults.append((after, done.fault, done.output[-2000:]))
        after += step
    assert faults == []


@pytest.mark.slow
@pytest.mark.parametrize("after", [4.0, 6.0, 9.0])
def test_a_program_gets_the_interrupt_and_no_other_error(tmp_path: Path, after: float) -> None:
    program = textwrap.dedent(NOTEBOOK)
    done = interrupt(tmp_path / "there", after, program=f"import torch, flwr.serverapp\n{program}")
    if "begins" in done.output:
        assert done.fault == "", done.output
    else:  # imports take as long where the machine is slow, and the interrupt is Python's own
        assert done.output.rstrip().endswith("KeyboardInterrupt"), done.output
    assert "AttributeError" not in done.output
    assert "failed" not in done.output
