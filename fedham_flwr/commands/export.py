"""`fedham export MODEL --format onnx | torch -o FILE`: a trained model for other programs."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from fedham_flwr.core.errors import UserError

ENDINGS = {"onnx": ".onnx", "torch": ".pt2"}
"""Format -> how its files end."""


def command(arguments: Sequence[str], program: str | None = None) -> int:
    """Write a trained model in another format; the exit code is 0 when it is there and says the same.

    Args:
        arguments: of the command line.
        program: its name, for the help.

    Raises:
        UserError: the model cannot be read, or not be written in this format.
    """
    _export(parser(program).parse_args(arguments))
    return 0


def parser(program: str | None = None) -> argparse.ArgumentParser:
    """The command line."""
    what = "A client's model for other programs: from raw inputs to probabilities, tried against the original."
    parser = argparse.ArgumentParser(program, description=what)
    parser.add_argument("model", metavar="MODEL", help="<run>/model/<client>.safetensors, or a run's directory")
    parser.add_argument("--format", choices=tuple(ENDINGS), required=True, help="ONNX, or a program of torch.export")
    parser.add_argument("-o", "--output", metavar="FILE", help="default: the model's name, .onnx or .pt2, here")
    parser.add_argument("--client", default="", metavar="NAME", help="of a run's directory: which client's model")
    parser.add_argument("--trust-imports", action="store_true", help="build a network by the import path in the file")
    return parser


def _export(options: argparse.Namespace) -> None:
    from fedham_flwr.predicting.exported import Exported
    from fedham_flwr.predicting.formats import write

    opened = Exported.open(options.model, client=options.client, trust_imports=options.trust_imports)
    ending = ENDINGS[options.format]
    path = Path(options.output).expanduser() if options.output else Path(opened.path.stem + ending)
    if path.suffix.lower() != ending:
        raise UserError(f"--output {path}: wanted a file that ends in {ending}")
    if opened.caution:
        sys.stderr.write(f"{opened.caution}\n")
    write(opened, options.format, path)
    sys.stderr.write(f"{path}: it says what {opened.path} says, to 1e-5\n")
