"""`fedham report DIR ... [-o FILE.html] [--tables DIR]`: the page of a study, of a run, or of several runs."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from fedham_flwr.core.errors import UserError, cause

if TYPE_CHECKING:
    from fedham_flwr.analysis.collection import Collection


def command(arguments: Sequence[str], program: str | None = None) -> int:
    """Write the page, and the tables if they are wanted; the exit code is 0 when they are there.

    Args:
        arguments: of the command line.
        program: its name, for the help.

    Raises:
        UserError: there is no run to show, or a file cannot be written.
    """
    _report(parser(program).parse_args(arguments))
    return 0


def parser(program: str | None = None) -> argparse.ArgumentParser:
    """The command line."""
    what = "The page of a study, of a run, or of several runs: one HTML file that is opened by a double click."
    parser = argparse.ArgumentParser(program, description=what)
    parser.add_argument("folders", nargs="+", metavar="DIR", help="of a study; or of runs, or folders that hold some")
    parser.add_argument("-o", "--output", metavar="FILE.html", help="default: report.html in DIR; of several here")
    parser.add_argument("--tables", metavar="DIR", help="a folder for each table as .md, .tex and .csv")
    return parser


def _report(options: argparse.Namespace) -> None:
    from fedham_flwr.analysis.collection import open_collection
    from fedham_flwr.analysis.writing import write_tables
    from fedham_flwr.page.write import write_report

    folders = [Path(folder).expanduser() for folder in options.folders]
    for folder in folders:
        if not folder.is_dir():
            raise UserError(f"{folder.absolute()} is no folder: wanted that of a study, of a run, or of several runs")
    output = _output(options.output, folders)
    collection = open_collection(folders)
    _check(collection, folders)
    try:
        written = [write_report(collection, output)]
        if options.tables:
            write_tables(collection, tables := Path(options.tables).expanduser())
            written.append(tables)
    except OSError as error:
        raise UserError(f"{error.filename} cannot be written: {cause(error)}") from error
    sys.stdout.write("".join(f"{path.absolute()}\n" for path in written))


def _output(given: str | None, folders: Sequence[Path]) -> Path:
    """Where the page goes."""
    if given is None:
        return folders[0] / "report.html" if len(folders) == 1 else Path("report.html")
    path = Path(given).expanduser()
    if path.suffix.lower() not in (".html", ".htm"):
        raise UserError(f"--output {path}: wanted a file that ends in .html")
    return path


def _check(collection: Collection, folders: Sequence[Path]) -> None:
    """Refuse what holds no run that came to its end, and say why."""
    if collection.runs:
        return
    named = ", ".join(str(folder.absolute()) for folder in folders)
    why = f": {collection.failures[0].error}" if collection.failures else ""
    raise UserError(f"{named} holds no run with scores of its end{why}")
