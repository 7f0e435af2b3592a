"""`fedham schema DATA`: a draft of a schema out of one site's data, for people to look through."""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fedham_flwr.core.errors import UserError
from fedham_flwr.data.drafts import draft
from fedham_flwr.data.kinds.table_settings import TableSettings
from fedham_flwr.data.sources import load

_OPTIONS = ("separator", "decimal", "missing", "encoding")


def command(arguments: Sequence[str], program: str | None = None) -> int:
    """Write a draft, and return the exit code.

    Args:
        arguments: of the command line.
        program: its name, for the help.

    Raises:
        UserError: the data cannot be read, or the draft not be written.
    """
    parser = argparse.ArgumentParser(program, description="Draft a schema: what each column of a table holds.")
    parser.add_argument("data", metavar="DATA", help="a .csv or .parquet file, or a folder of them")
    parser.add_argument("--label", default="", metavar="COLUMN", help="what is to be learned (default: label)")
    parser.add_argument("--client-column", default="", metavar="COLUMN", help="whose each row is, which is no input")
    parser.add_argument("-o", "--output", metavar="FILE", help="default: the standard output")
    for name in _OPTIONS:
        parser.add_argument(f"--{name}", default="", help=f"the setting table.{name}")
    options = parser.parse_args(arguments)
    given: dict[str, Any] = {name: getattr(options, name) for name in _OPTIONS}
    try:
        if options.output and Path(options.output).exists():
            raise UserError(f"{options.output} is there already: name another file, or remove it")
        with tempfile.TemporaryDirectory() as copy:
            text = draft(
                load(options.data, copy, TableSettings(**given)), options.label, options.client_column,
                TableSettings(**given),
            )  # fmt: skip
        if options.output:
            Path(options.output).write_text(text, encoding="utf-8")
        else:
            sys.stdout.write(text)
    except OSError as error:
        raise UserError(f"{options.output} can't be written: {error.strerror}") from error
    return 0
