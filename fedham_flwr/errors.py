"""The one kind of error that a user can mend: shown as a sentence, never as a stack trace."""


class UserError(Exception):
    """Something outside the program is wrong: a setting, a file, a client.

    The text is one sentence that names the thing, its value, and what was wanted.
    """
