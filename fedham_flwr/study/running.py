"""One run of a study in this process: begun, or gone on with where an earlier attempt was interrupted."""

from __future__ import annotations

import contextlib
import shutil
import time
import traceback
from dataclasses import replace
from pathlib import Path

from fedham_flwr.core.devices import check_device
from fedham_flwr.core.errors import UnwritableError, UserError, described, out_of_space
from fedham_flwr.reporting.run_directory import RunDirectory
from fedham_flwr.reporting.summary import waited
from fedham_flwr.resume import checkpoints
from fedham_flwr.resume.writer import check_free
from fedham_flwr.runners import Simulation, run_backend
from fedham_flwr.settings import Value, parse
from fedham_flwr.study.following import Follower, Listener, Stopped
from fedham_flwr.study.runs import RunResult, RunSpec

PATIENCE = 20.0
"""Seconds that a process which still writes to the run's directory is given: whoever started it is gone."""


def carry_out(spec: RunSpec, folder: Path, listener: Listener) -> RunResult:
    """Do a run, or what is left of it.

    Args:
        spec: the run.
        folder: `runs/<key>` of the study, where an earlier attempt may have left something.
        listener: is told of the run's course, from its beginning, and may stop it.

    Raises:
        UnwritableError: a file cannot be written, which is no fault of the run.
    """
    began, follower = time.perf_counter(), Follower(listener)
    result, spent = RunResult("complete"), 0.0
    try:
        left = _left(folder)
        spent = _seconds(left) if left else 0.0
        _run(spec, folder, left, follower)
        _check(spec, follower)
    except Stopped:
        result = RunResult("pruned")
    except UnwritableError:
        raise
    except Exception as error:  # whatever a user's own code raises, too
        if full := out_of_space(error):
            raise full from error
        traceback.print_exc()
        result = RunResult("failed", _sentence(error))
    directory = _left(folder)
    return replace(
        result,
        directory=directory.relative_to(folder) if directory else None,
        steps=tuple(follower.steps),
        seconds=round(spent + time.perf_counter() - began, 3),
        metric=follower.metric,
        higher=follower.higher,
    )


def _left(folder: Path) -> Path | None:
    """The directory of the run that an earlier attempt has left, if it has."""
    return next((config.parent for config in sorted(folder.glob("*/*/config.toml"))), None)


def _seconds(run: Path) -> float:
    """What earlier attempts took, as far as their exchanges tell."""
    directory = RunDirectory(run)
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        return sum(map(waited, [*directory.read_rounds(), *directory.read_rounds("undone.jsonl")]))
    return 0.0


def _run(spec: RunSpec, folder: Path, left: Path | None, follower: Follower) -> None:
    """Run it to its end, from the newest checkpoint if there is one."""
    from fedham_flwr.server_app import make_server_app

    given: dict[str, Value] = {**spec.settings, "results-dir": str(folder)}
    if left:
        _wait_for(left)
        if _has_checkpoint(left):
            # Whoever was to take down how it ended did not live to do it: its closing evaluation is done once more.
            (left / "summary.json").unlink(missing_ok=True)
            given["resume"] = str(left)
        else:
            shutil.rmtree(left)
    check_device(parse(given).device)
    app = make_server_app(given, None, (), (follower,))
    run_backend(app, given, Simulation(spec.clients, "cohort"))


def _wait_for(run: Path) -> None:
    """Wait for whoever writes to the directory of a run.

    Raises:
        UserError: that lasts too long.
    """
    end = time.monotonic() + PATIENCE
    while True:
        try:
            return check_free(run)
        except UserError:
            if time.monotonic() > end:
                raise
        time.sleep(0.1)


def _has_checkpoint(run: Path) -> bool:
    try:
        checkpoints.newest(run)
    except UserError:
        return False
    return True


def _check(spec: RunSpec, follower: Follower) -> None:
    """Refuse a tuning run without a value to choose by.

    Raises:
        UserError: it has none.
    """
    if spec.role != "tuning" or follower.closed:
        return
    if not follower.validated:
        raise UserError("no client has validation samples to tune on: wanted a larger validation-fraction")
    why = f": {follower.fault}" if follower.fault else ""
    raise UserError(f"not every client was scored in the closing evaluation, so there is no value to choose by{why}")


def _sentence(error: Exception) -> str:
    """Why a run failed."""
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return f"there was not enough memory: {described(error)}"
    return described(error)
