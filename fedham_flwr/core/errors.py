"""The one kind of error that a user can mend: shown as a sentence, never as a stack trace."""


class UserError(Exception):
    """Something outside the program is wrong: a setting, a file, a client.

    The text is one sentence that names the thing, its value, and what was wanted.
    """


def first_line(text: object) -> str:
    """The first line that is not blank of a text or of an error's; the error's name, or "no text", if there is none."""
    empty = type(text).__name__ if isinstance(text, BaseException) else "no text"
    return next((line.strip() for line in str(text).splitlines() if line.strip()), empty)
