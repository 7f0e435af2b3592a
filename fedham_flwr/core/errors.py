"""The one kind of error that a user can mend: shown as a sentence, never as a stack trace."""

import errno
import os
import sysconfig
import traceback
from pathlib import Path

_ROOT = Path(__file__).parents[2]
_NOT_OF_USERS = (
    *(str(_ROOT / part) + os.sep for part in ("fedham_flwr", "strategies", "clients")),
    sysconfig.get_paths()["stdlib"],
)


class UserError(Exception):
    """Something outside the program is wrong: a setting, a file, a client.

    The text is one sentence that names the thing, its value, and what was wanted.
    """

    def _render_traceback_(self) -> list[str]:
        """What IPython shows of it in a notebook: the sentence."""
        return [f"{type(self).__name__}: {self}"]


class UnwritableError(UserError):
    """A file cannot be written, as on a full disk: no client's fault, and a simulation, whose disk it is, ends."""


class CallbackError(Exception):
    """A callback failed: the text is its name, and what it raised is the cause."""


class DivergedError(UserError):
    """Local training made numbers that are not finite."""


def first_line(text: object) -> str:
    """The first line that is not blank of a text or of an error's; the error's name, or "no text", if there is none."""
    empty = type(text).__name__ if isinstance(text, BaseException) else "no text"
    return next((line.strip() for line in str(text).splitlines() if line.strip()), empty)


def reason(error: BaseException) -> str:
    """Why a file cannot be read or written: what the system says, and the file's name if it is known.

    Args:
        error: an OSError, as a rule.
    """
    file = getattr(error, "filename", None)
    return f"{cause(error)} ({Path(os.fsdecode(file)).name})" if file and not isinstance(file, int) else cause(error)


def cause(error: BaseException) -> str:
    """What the system says of why a file cannot be read or written; of any other error its first line."""
    number = error.errno if isinstance(error, OSError) else None
    if number is not None and number in errno.errorcode:
        return os.strerror(number)  # in its `strerror` pyarrow says more words
    return str(getattr(error, "strerror", None) or first_line(error))


def out_of_space(error: BaseException) -> UnwritableError | None:
    """What to say of an error that came of a full disk or quota, wherever it was noticed; None of any other.

    Args:
        error: any; what it was raised from counts too.
    """
    origin: BaseException | None = error
    while origin is not None:
        full = isinstance(origin, OSError) and origin.errno in (errno.ENOSPC, errno.EDQUOT)
        if full or isinstance(origin, UnwritableError):
            told = isinstance(error, UserError)
            return UnwritableError(str(error) if told else f"a file cannot be written: {reason(origin)}")
        origin = origin.__cause__
    return None


def described(error: BaseException) -> str:
    """An error that a user's code raised: its name, its first line, and the user's file and line that it came from."""
    place = line_of(error)
    return f"{type(error).__name__}: {first_line(error)}" + (f" ({place})" if place else "")


def line_of(error: BaseException) -> str:
    """The last file and line of a user's own code on the way to an error; empty if there is none."""
    # Not extract_tb, which shows nothing where Flower's processes are told to print no stacks.
    places = [(frame.f_code.co_filename, line) for frame, line in traceback.walk_tb(error.__traceback__)]
    own = [(file, line) for file, line in places if not file.startswith(_NOT_OF_USERS) and "site-packages" not in file]
    return f"{Path(own[-1][0]).name}, line {own[-1][1]}" if own else ""
