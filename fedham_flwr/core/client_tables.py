"""TOML files with a line `client = "word"` for each client, which settings name by their paths."""

from __future__ import annotations

import os
import tomllib
from pathlib import Path

from fedham_flwr.core.errors import UserError


def read_client_table(setting: str, given: str, what: str) -> dict[str, str]:
    """Client -> word, as a table says.

    Args:
        setting: its name, as it is written.
        given: its value, the path of the file.
        what: a word stands for, for errors.

    Raises:
        UserError: there is no such file, it is no TOML, a line says no word, or there is none.
    """
    wanted = f'wanted lines client = "{what}", a name with a dot in it in quotes'
    path = os.path.abspath(Path(given).expanduser())
    try:
        document = tomllib.loads(Path(path).read_bytes().decode())
    except OSError as error:
        raise UserError(f"{setting}={given!r}: {path} can't be read ({error.strerror})") from error
    except ValueError as error:
        raise UserError(f"{setting}={given!r} is not TOML: {error}") from error
    for client, word in document.items():
        if not isinstance(word, str):
            raise UserError(f"{setting}={given!r} has {client} = {word!r}: {wanted}")
    if not document:
        raise UserError(f"{setting}={given!r} names no client: {wanted}")
    return document
