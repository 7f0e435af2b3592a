"""Where a run ends before its time: what is removed, what a user's own code did, and how to go on."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import traceback
from pathlib import Path

from fedham_flwr.core.errors import CallbackError, UnwritableError, UserError, described, line_of, out_of_space
from fedham_flwr.core.imports import section_of
from fedham_flwr.core.interrupts import seen
from fedham_flwr.registry import BUILT_IN
from fedham_flwr.reporting.journal import Journal
from fedham_flwr.resume.checkpoints import FOLDER
from fedham_flwr.resume.runs import read_settings
from fedham_flwr.run_settings import Settings

log = logging.getLogger("fedham_flwr")

STACK = "error.log"
"""In a run's directory: the stack of an error that is no mistake in a setting."""


def missing_parents(settings: Settings) -> tuple[Path, ...]:
    """The folders above the directory of a new run that are not there yet, the inner one first."""
    top = Path(os.path.abspath(os.path.expanduser(settings.results_dir)))
    return tuple(folder for folder in (top / section_of(settings.strategy), top) if not folder.exists())


def remove(directory: Path | None, parents: tuple[Path, ...]) -> None:
    """Take away the directory of a run that has not begun, with those above it that were made for it and are empty.

    Args:
        directory: the run's, if it was made; one with a stack in it stays.
        parents: what `missing_parents` said before the directory was made.
    """
    if directory and (directory / STACK).exists():
        return
    if directory:
        shutil.rmtree(directory, ignore_errors=True)
    for folder in parents:
        with contextlib.suppress(OSError, ValueError):
            folder.rmdir()


def explained(error: BaseException, strategy: str, directory: Path) -> BaseException:
    """What to raise in place of an error: of one that a user's own code raised a sentence, any other as it is.

    The stack of what is no `UserError` is written to `error.log`.

    Args:
        error: what ended the run.
        strategy: the setting.
        directory: the run's.
    """
    if isinstance(error, Exception) and seen():
        return KeyboardInterrupt()
    error = out_of_space(error) or error
    if isinstance(error, UnwritableError) and any((directory / FOLDER).glob("round-*")):
        return UserError(f"{error}; what was written before is whole: after room is made, resume={directory} goes on")
    if isinstance(error, UserError) or not isinstance(error, Exception):
        return error
    file = directory / STACK
    try:
        file.write_text("".join(traceback.format_exception(error)), encoding="utf-8")
    except OSError:
        return error
    own = strategy not in BUILT_IN  # which also fails where it gives this package something else than was wanted
    if isinstance(error, CallbackError):
        what, failed = f"the callback {error}", error.__cause__ or error
    elif own or line_of(error):
        what, failed = f"the method {section_of(strategy)}" if own else "code of your own", error
    else:
        return error
    return UserError(f"{what} failed: {described(failed)}; the whole stack is in {file}")


def finish_early(journal: Journal, told: BaseException) -> None:
    """Write what there is; if that cannot be, what ended the run is the one thing that is said.

    Args:
        journal: of a run that has begun.
        told: what ended it.
    """
    try:
        journal.finish(told)
    except UserError as error:
        if not isinstance(told, UserError):
            log.warning("%s", error)


def interrupted(left: Path | None, command: str) -> str:
    """What to say of a run that the user interrupted: where its results are, and how to go on.

    Args:
        left: the run's directory, if it had one.
        command: what to type to go on, up to the name of the directory.
    """
    if left is None or not left.is_dir():
        return "interrupted before the first round: nothing is left of this run"
    said = f"interrupted; what there is so far is in {left}; "
    rounds = [int(folder.name.removeprefix("round-")) for folder in (left / FOLDER).glob("round-*")]
    if rounds:
        return f"{said}to go on after round {max(rounds)}: {command}"
    every = read_settings(left).get("checkpoint-every", 0)
    when = f"the first one is written after round {every} (checkpoint-every={every})" if every else "checkpoint-every=0"
    return f"{said}there is no checkpoint to go on from: {when}"
