"""The one kind of error that a user can mend: shown as a sentence, never as a stack trace."""


class UserError(Exception):
    """Something outside the program is wrong: a setting, a file, a client.

    The text is one sentence that names the thing, its value, and what was wanted.
    """


def first_line(error: Exception) -> str:
    """The first line of a library's error text, or the error's name if it has none."""
    return next(iter(str(error).splitlines()), type(error).__name__)
