"""What is wrong with a .csv file that can't be read: its first line that is no text, or doesn't fit the header."""

from __future__ import annotations

import contextlib
import csv
from collections.abc import Sequence

from fedham_flwr.core.errors import UserError, first_line
from fedham_flwr.data.csv_places import Dialect, Line, lines, opened

_SHOWN = 60  # characters of a row in a sentence


def fault(dialect: Dialect, error: Exception | None, trailing: bool = False) -> UserError:
    """What to say of a file that can't be read: its first line that is no text, or has other fields than the header.

    Args:
        dialect: of the file.
        error: what the reader said.
        trailing: a separator without a field behind it is at the end of each row.
    """
    with contextlib.suppress(OSError, EOFError):
        if wrong := _no_text(dialect) or _ragged(dialect, trailing):
            return UserError(f"{dialect.file}, {wrong}.")
    return UserError(f"{dialect.file} can't be read: {first_line(error)}.")


def _no_text(dialect: Dialect) -> str:
    """The first line that is not of the encoding; empty if all are."""
    with opened(dialect.file) as binary:
        content = binary.read()
    try:
        content.decode(dialect.encoding)
    except UnicodeDecodeError as error:
        name = "UTF-8" if dialect.encoding == "utf-8-sig" else dialect.encoding
        line = len(content[: error.start].splitlines()) or 1
        line += content[: error.start].endswith((b"\n", b"\r"))
        return (
            f"line {line}: the byte 0x{content[error.start]:02x} is no text in {name}; set table.encoding to what the "
            'file is written in, such as "latin1" or "cp1252"'
        )
    except LookupError:
        return ""
    return ""


def _ragged(dialect: Dialect, trailing: bool) -> str:
    """The first row with more or fewer fields than the header; empty if there is none."""
    names: list[str] = []
    line = 0
    try:
        for row in lines(dialect, strict=True):
            line = row.end
            if not names:
                names = row.fields[:-1] if trailing and not row.fields[-1].strip() else row.fields
            elif len(row.fields) != len(names) + trailing or (trailing and row.fields[-1].strip()):
                return _fields(row, names, dialect)
    except csv.Error as error:
        return f"line {line + 1}: {first_line(error)}: a quote may not be closed"
    return ""


def _fields(row: Line, names: Sequence[str], dialect: Dialect) -> str:
    advice = ""
    if len(row.fields) > len(names) and dialect.separator in ",;":
        advice = (
            f"; a number or text that holds a {dialect.separator!r} needs quotes around it, or the file another "
            "separator"
        )
    text = dialect.separator.join(row.fields)
    return (
        f"line {row.line}: {len(row.fields)} fields are found ({shown([text])}), and wanted are {len(names)}, as the "
        f"header has ({shown(names)}){advice}"
    )


def shown(fields: Sequence[str]) -> str:
    """Names or values, cut where there are many."""
    text = ", ".join(fields)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]} ..."
