"""Runs that end before their time: by Ctrl-C, by a fault of a user's method, and before the first round."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fedham_flwr import simulate
from fedham_flwr.cli import _as_before, parser, run_command
from fedham_flwr.core.errors import UserError

Federate = Callable[..., Any]
pytestmark = pytest.mark.usefixtures("workplace")


# ---- Ctrl-C ----------------------------------------------------------------------------------------------------------


def interrupted(capsys: pytest.CaptureFixture[str], config: str, *options: str) -> str:
    """What is said last of a run that is interrupted in round 3; the run's directory is the only one."""
    config = f'strategy="own_methods:STOPS" samples-per-client=40 num-server-rounds=4 device="cpu" {config}'
    assert run_command(["-c", config, "--num-supernodes", "3", *options]) == 130
    captured = capsys.readouterr()
    assert captured.out.splitlines()[-1].startswith("results: ")
    assert captured.err.count("\n") == 1
    return captured.err


@pytest.mark.parametrize("backend", ["in-process", "cohort"])
def test_an_interrupt_says_how_to_go_on_and_that_works(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, backend: str
) -> None:
    monkeypatch.setattr(sys, "argv", ["/a folder/run_simulation.py"])
    said = interrupted(capsys, "checkpoint-every=1", "--backend", backend)
    (run,) = (tmp_path / "results" / "stops").iterdir()
    command = f"python '/a folder/run_simulation.py' --resume {run} --backend {backend}"
    assert said == f"interrupted; what there is so far is in {run}; to go on after round 2: {command}\n"
    import own_methods

    monkeypatch.delattr(own_methods.Stops, "merge")
    assert run_command(shlex.split(command)[2:]) == 0
    assert json.loads((run / "summary.json").read_text())["num-rounds"] == 4


@pytest.mark.parametrize(
    ("every", "why"),
    [
        (0, "checkpoint-every=0"),
        (10, "the first one is written after round 10 (checkpoint-every=10)"),
    ],
)
def test_an_interrupt_without_a_checkpoint_says_so(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, every: int, why: str
) -> None:
    said = interrupted(capsys, f"checkpoint-every={every}", "--backend", "in-process")
    (run,) = (tmp_path / "results" / "stops").iterdir()
    assert said == f"interrupted; what there is so far is in {run}; there is no checkpoint to go on from: {why}\n"


def test_the_command_has_the_options_that_the_run_had(capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--backend", "in-process", "--results-dir", "with blanks"]
    config = 'strategy="own_methods:STOPS" samples-per-client=40 checkpoint-every=1 device="cpu"'
    assert run_command(["-c", config, *options], "fedham run") == 130
    command = capsys.readouterr().err.rpartition("to go on after round 2: ")[2]
    assert command.startswith(f"fedham run --resume '{Path.cwd() / 'with blanks' / 'stops'}")
    assert command.endswith("' --backend in-process\n")
    options = parser().parse_args(["--engine", "one-by-one", "--num-cpus", "2", "--ray-address", "here:1"])
    assert _as_before(options, [Path("run")]) == " --resume run --engine one-by-one --num-cpus 2 --ray-address here:1"


def test_in_a_notebook_an_interrupt_says_the_call_that_goes_on(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import own_methods

    short: dict[str, Any] = {"samples_per_client": 40, "device": "cpu", "verbose": False}
    with pytest.raises(KeyboardInterrupt):
        simulate(own_methods.STOPS, clients=3, num_server_rounds=4, checkpoint_every=2, backend="cohort", **short)
    (run,) = (tmp_path / "results" / "stops").iterdir()
    call = f"simulate(resume={str(run)!r}, backend='cohort')"
    assert caplog.messages[-1] == f"interrupted; what there is so far is in {run}; to go on after round 2: {call}"
    monkeypatch.delattr(own_methods.Stops, "merge")
    done = simulate(resume=run, verbose=False)  # with its own method and as many clients
    assert (done.directory, done.summary["num-rounds"], len(done.clients)) == (run, 4, 3)


def test_an_interrupt_before_the_first_round_leaves_nothing(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("fedham_flwr.federation.roster.Roster.discover", interrupt)
    assert run_command(["--backend", "in-process"]) == 130
    assert capsys.readouterr().err == "interrupted before the first round: nothing is left of this run\n"
    assert not (tmp_path / "results").exists()


# ---- before the first round ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("there", [(), ("results",), ("results", "fedavg"), ("results", "fedavg", "earlier")])
def test_a_start_that_fails_leaves_only_what_was_there(
    federate: Federate, tmp_path: Path, there: tuple[str, ...]
) -> None:
    tmp_path.joinpath(*there).mkdir(parents=True, exist_ok=True)
    with pytest.raises(UserError, match="no file or folder /nowhere/at-all"):
        federate(strategy="fedavg", dataset="/nowhere/at-all")
    with pytest.raises(UserError, match="there is no module nowhere"):
        federate(strategy="fedavg", dataset="nowhere:load")
    left = [path.relative_to(tmp_path).parts for path in (tmp_path / "results").rglob("*")]
    assert (tmp_path / "results").exists() == bool(there)
    assert left == [there[:n] for n in range(2, len(there) + 1)]


# ---- a method of one's own -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("which", "sentence"),
    [
        ("INIT", "the method init failed: KeyError: 'size' (own_methods.py, line 29); the whole stack is in "),
        (
            "PLAN",
            "the method plan failed: AttributeError: 'tuple' object has no attribute 'no_such_thing' (own_methods.py",
        ),
        ("MERGE", "the method merge failed: RuntimeError: The size of tensor a (128) must match"),
        ("STATE", "the method state failed: RuntimeError: The size of tensor a (128) must match"),
        (
            "WRONG_MERGE",
            "the method wrong-merge failed: ValueError: conv1.weight has dtype torch.float64, wanted torch",
        ),
    ],
)
def test_a_fault_of_an_own_server_half_is_a_sentence_and_its_stack_a_file(
    federate: Federate, tmp_path: Path, which: str, sentence: str
) -> None:
    with pytest.raises(UserError) as raised:
        federate(strategy=f"own_methods:{which}")
    assert str(raised.value).startswith(sentence)
    (run,) = (tmp_path / "results").glob("*/*")
    assert str(raised.value).endswith(f"; the whole stack is in {run / 'error.log'}")
    stack = (run / "error.log").read_text()
    assert stack.startswith("Traceback (most recent call last):\n")
    assert ("own_methods.py" in stack) == (which != "WRONG_MERGE")
    if which not in ("INIT",):
        assert json.loads((run / "summary.json").read_text())["error"] == f"UserError: {raised.value}"


@pytest.mark.parametrize(
    ("which", "sentence"),
    [
        ("UNFINISHED", r"^Unfinished, the server half of unfinished, lacks load_state_dict, merge, state_dict$"),
        ("STOPS.strategy", r"is the class Stops, and wanted is a fedham_flwr.Method: Method\(server half, client"),
        ("NO_SERVER_HALF", r"^the server half of no-server-half is dict, and wanted is a RoundStrategy"),
    ],
)
def test_a_server_half_that_is_none_is_a_sentence(
    federate: Federate, tmp_path: Path, which: str, sentence: str
) -> None:
    with pytest.raises(UserError, match=sentence):
        federate(strategy=f"own_methods:{which}")
    assert not (tmp_path / "results").exists()


@pytest.mark.parametrize(
    ("which", "sentence"),
    [
        ("WRONG_PLAN", r"^plan of WrongPlan gives int for client 0, and wanted is Start\(shared tensors\)$"),
        ("NO_PLAN", r"^plan of NoPlan gives nothing for client 0, and wanted is Start\(shared tensors\)$"),
        ("NO_TENSORS", r"^state_dict of NoTensors gives int for rounds, and wanted is a tensor$"),
        (
            "SENDS_NOTHING",
            r"client 0's: train of SendsNothing gives an Outcome whose `send` lacks conv1.weight, conv1.b",
        ),
        (
            "KEEPS_NOTHING",
            r"client 0's: train of KeepsNothing gives an Outcome whose `keep` lacks fc2.weight, fc2.bias: ",
        ),
    ],
)
def test_what_a_method_gives_that_is_not_wanted_is_named(federate: Federate, which: str, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        federate(strategy=f"own_methods:{which}", num_server_rounds=1, checkpoint_every=1)


def test_a_fault_of_this_package_keeps_its_stack(
    federate: Federate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fedham_flwr.algorithms.fedavg.aggregate", pow)
    with pytest.raises(TypeError, match="unsupported operand"):
        federate(strategy="fedavg")
    (run,) = (tmp_path / "results").glob("*/*")
    assert "TypeError: unsupported operand" in (run / "error.log").read_text()


def test_a_program_sees_the_sentence_alone() -> None:
    import own_methods

    with pytest.raises(UserError, match=r"^the method merge failed: .*\(own_methods.py, line 44\)") as raised:
        simulate(own_methods.MERGE, clients=2, num_server_rounds=1, samples_per_client=40, verbose=False)
    assert raised.value.__cause__ is None
