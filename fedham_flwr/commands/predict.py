"""`fedham predict MODEL DATA`: what a trained model says of new rows."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedham_flwr.core.errors import UserError
from fedham_flwr.core.files import replacing

if TYPE_CHECKING:
    from fedham_flwr.predicting.predict import Predicted

SHOWN = 10
"""Rows that do not fit, and are named."""
ENDINGS = (".csv", ".parquet")


def command(arguments: Sequence[str], program: str | None = None) -> int:
    """Write the predictions of new rows; the exit code is 0 when all that was asked for is there.

    Args:
        arguments: of the command line.
        program: its name, for the help.

    Raises:
        UserError: the model or the rows cannot be read, or a row does not fit.
    """
    options = parser(program).parse_args(arguments)
    try:
        _predict(options)
        sys.stdout.flush()
    except BrokenPipeError:  # `fedham predict ... | head` has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    return 0


def parser(program: str | None = None) -> argparse.ArgumentParser:
    """The command line."""
    what = "Predictions of new rows by the model that a run has left of a client, in the order of the rows."
    parser = argparse.ArgumentParser(program, description=what)
    parser.add_argument("model", metavar="MODEL", help="<run>/model/<client>.safetensors, or a run's directory")
    parser.add_argument(
        "data", metavar="DATA", help="a file (CSV, Parquet, JSON, text), a folder of pictures, a picture"
    )
    parser.add_argument("-o", "--output", metavar="FILE.csv | FILE.parquet", help="default: CSV on the standard output")
    parser.add_argument("--client", default="", metavar="NAME", help="of a run's directory: which client's model")
    parser.add_argument("--probabilities", action="store_true", help="a column for each class")
    parser.add_argument("--id", default="", metavar="COLUMN", help="a column of DATA that goes along")
    parser.add_argument("--bad-rows", choices=("refuse", "leave-empty"), default="refuse", help="default: refuse")
    parser.add_argument("--score", action="store_true", help="say on the standard error how good the predictions are")
    parser.add_argument("--metrics", default="auto", help="for --score, as the setting (auto)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda (auto)")
    parser.add_argument("--batch-size", type=int, default=256, metavar="N", help="rows at a time (256)")
    parser.add_argument("--trust-imports", action="store_true", help="build a network by the import path in the file")
    return parser


def _predict(options: argparse.Namespace) -> None:
    from fedham_flwr.data.new_rows import as_array, open_rows
    from fedham_flwr.predicting.exported import Exported
    from fedham_flwr.predicting.predict import of_array, of_rows

    output = Path(options.output).expanduser() if options.output else None
    if output and output.suffix.lower() not in ENDINGS:
        raise UserError(f"--output {options.output}: wanted a file that ends in {' or '.join(ENDINGS)}")
    if output and not output.parent.is_dir():
        raise UserError(f"--output {options.output}: there is no folder {output.parent.absolute()}")
    opened = Exported.open(options.model, client=options.client, trust_imports=options.trust_imports)
    if opened.caution:
        _say(opened.caution)
    if (array := as_array(options.data)) is not None:
        if options.score:
            raise UserError("--score needs rows that say what is true, and an array does not")
        _write(of_array(opened, array, options.probabilities, options.device, options.batch_size), output)
        return
    with open_rows(options.data, opened.recipe) as rows:
        found = of_rows(
            opened, rows, options.probabilities, options.id, options.bad_rows, options.device, options.batch_size
        )
        if rows.passed_over:
            _say(f"{rows.passed_over} files of {options.data} are no pictures and are passed over")
        _write(found, output)
        if options.score:
            from fedham_flwr.predicting.scores import score

            scores = score(opened, rows, found.outputs, found.good, options.metrics)
            _say(
                ", ".join(f"{name} {value:.6g}" for name, value in scores.values.items()) + f" ({scores.n} predictions)"
            )


def _write(found: Predicted, output: Path | None) -> None:
    if found.faults:
        rows = ", ".join(str(row + 1) for row, _ in found.faults[:SHOWN])
        more = " and more" if len(found.faults) > SHOWN else ""
        what = "1 row does not fit and is" if len(found.faults) == 1 else f"{len(found.faults)} rows do not fit and are"
        _say(f"{what} left empty (row{'s' if found.faults[1:] else ''} {rows}{more}); {found.faults[0][1]}")
    given: dict[str, Any] = {"index": False, "float_format": "%.9g"}
    if output is None:
        found.frame.to_csv(sys.stdout, **given)
        return
    try:
        with replacing(output) as part:
            if output.suffix.lower() == ".csv":
                found.frame.to_csv(part, **given)
            else:
                found.frame.to_parquet(part, index=False)
    except OSError as error:
        raise UserError(f"the predictions cannot be written to {output}: {error.strerror or error}") from error
    _say(f"predictions of {len(found.frame)} rows: {output}")


def _say(text: str) -> None:
    with contextlib.suppress(OSError):
        sys.stderr.write(f"{text}\n")
