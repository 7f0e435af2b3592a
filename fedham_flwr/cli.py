"""The command line: `fedham run -c 'strategy="fedavg" num-server-rounds=5'`, `fedham settings`."""

from __future__ import annotations

import argparse
import importlib
import os
import re
import shlex
import sys
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import NamedTuple, NoReturn

from fedham_flwr import __version__
from fedham_flwr.callbacks.chosen import check_callbacks
from fedham_flwr.core.devices import check_device
from fedham_flwr.core.errors import UserError
from fedham_flwr.core.interrupts import Interruptible
from fedham_flwr.idle import check_sections, of_no_method
from fedham_flwr.resume.continuing import clients_of, complete
from fedham_flwr.runners import BACKENDS, ENGINES, Simulation, run_backend
from fedham_flwr.settings import Value, parse

HELP = """usage: fedham COMMAND ...                                fedham COMMAND --help says more

{commands}
  fedham --version
"""


class Command(NamedTuple):
    """A command of `fedham`.

    Attributes:
        function: `module:function` of (arguments, program), which returns the exit code, or raises UserError; imported
            when it is called.
        usage: its arguments in short.
        what: it does, in a few words.
    """

    function: str
    usage: str
    what: str


COMMANDS = {
    "run": Command(
        "fedham_flwr.cli:run_command", "[-c 'KEY=VALUE ...' | -c FILE.toml] ...", "a federation on this machine"
    ),
    "settings": Command(
        "fedham_flwr.commands.settings:command", "[SECTION | SETTING]", "every setting with its default, or some"
    ),
    "schema": Command("fedham_flwr.commands.schema:command", "DATA [-o FILE]", "a draft of what columns hold"),
    "predict": Command("fedham_flwr.commands.predict:command", "MODEL DATA", "predictions of new rows"),
    "export": Command(
        "fedham_flwr.commands.export:command", "MODEL --format onnx | torch", "a model for other programs"
    ),
    "study": Command("fedham_flwr.commands.study:command", "STUDY.toml [--dry-run]", "methods tuned and compared"),
    "report": Command(
        "fedham_flwr.commands.report:command", "DIR ... [-o FILE.html]", "a page to read: tables and figures of runs"
    ),
    "doctor": Command("fedham_flwr.commands.doctor:command", "[--data DATA] [-c ...]", "a check before a run"),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """The command `fedham`: parse the command line, do it, and return the exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if given and given[0] in COMMANDS:
        module, _, function = COMMANDS[given[0]].function.partition(":")
        try:
            with Interruptible():
                return int(getattr(importlib.import_module(module), function)(given[1:], f"fedham {given[0]}"))
        except UserError as error:
            sys.stderr.write(f"error: {error}\n")
            return 1
        except KeyboardInterrupt:  # of a command that leaves nothing behind that is to be named
            sys.stderr.write("interrupted\n")
            return 130
    if given == ["--version"]:
        sys.stdout.write(f"fedham-flwr {__version__}\n")
        return 0
    asked = not given or given[0] in ("-h", "--help")
    (sys.stdout if asked else sys.stderr).write(
        help_text() if asked else f"error: {' '.join(given)!r} is no command\n{help_text()}"
    )
    return 0 if asked else 2


def help_text() -> str:
    """The commands, a line each."""
    said = [f"fedham {name} {command.usage}" for name, command in COMMANDS.items()]
    lines = [f"  {line:<58}  {command.what}" for line, command in zip(said, COMMANDS.values(), strict=True)]
    return HELP.format(commands="\n".join(lines))


def run_command(arguments: Sequence[str] | None = None, program: str | None = None) -> int:
    """Run a federation; the exit code is 0 when it came to its end.

    Args:
        arguments: of the command line, without the program's name.
        program: its name, for the help.
    """
    left: list[Path] = []
    options = argparse.Namespace()
    try:
        with Interruptible():
            options = parser(program).parse_args(arguments)
            _run(options, left)
    except KeyboardInterrupt:
        from fedham_flwr.ends import interrupted

        again = f"{program or f'python {shlex.quote(sys.argv[0])}'}{_as_before(options, left) if left else ''}"
        sys.stderr.write(f"{interrupted(left[0] if left else None, again)}\n")
        return 130
    except UserError as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    return 0


def _as_before(options: argparse.Namespace, left: Sequence[Path]) -> str:
    """The options with which a run goes on as it began."""
    given = ["--resume", *map(str, left)]
    usual = vars(parser().parse_args([]))
    for name in ("backend", "engine", "num_cpus", "num_workers", "ray_address"):
        if (value := getattr(options, name)) != usual[name]:
            given += [f"--{name.replace('_', '-')}", str(value)]
    return f" {shlex.join(given)}"


def _run(options: argparse.Namespace, left: list[Path]) -> None:
    os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
    texts = options.run_config or []
    given = overrides(texts)
    asked = asked_for(texts, given)
    for option in ("results_dir", "resume"):
        if getattr(options, option) == "":
            raise UserError(f"--{option.replace('_', '-')} is given an empty text: wanted a directory")
    if options.results_dir:
        given["results-dir"] = options.results_dir
    if resume := options.resume or str(given.get("resume", "")):
        given = complete(resume, given)
    if options.num_supernodes is None:
        options.num_supernodes = clients_of(given, resume)
    if options.num_supernodes < 1:
        raise UserError(f"--num-supernodes {options.num_supernodes} must be above 0")
    chosen = Simulation(
        options.num_supernodes, options.backend, options.engine, options.num_cpus, options.num_workers,
        options.ray_address,
    )  # fmt: skip
    chosen.check()
    settings = parse(given)
    check_device(settings.device, options.ray_address, settings.precision)
    check_sections(asked, settings)
    check_callbacks(settings)
    run(given, chosen, left, asked)


class Parser(argparse.ArgumentParser):
    """A command line whose faults are one sentence; the usage has many lines, and is what --help is for."""

    def error(self, message: str) -> NoReturn:
        """Say what is wrong, and end with 2."""
        self.exit(2, f"error: {message}; {self.prog} --help says more\n")


def parser(program: str | None = None) -> argparse.ArgumentParser:
    """The command line of a run."""
    what = "Run a federation on this machine."
    parser = Parser(program, description=what, epilog="`fedham settings` lists the settings.")
    parser.add_argument("-c", "--run-config", action="append", metavar="'KEY=VALUE ...' | FILE.toml", help="settings")
    parser.add_argument("--num-supernodes", type=int, metavar="N", help="clients (default: those of the data, or 10)")
    parser.add_argument("--backend", choices=BACKENDS, default="ray", help="default: ray")
    parser.add_argument("--engine", choices=ENGINES, default="cohort", help="of ray: default: cohort")
    parser.add_argument("--num-cpus", type=int, default=1, metavar="N", help="of ray: processors of a worker (1)")
    parser.add_argument("--num-workers", type=int, default=0, metavar="N", help="of ray (0: as many as fit)")
    parser.add_argument("--ray-address", default="", metavar="HOST:PORT", help="of a Ray cluster that is there")
    parser.add_argument("--results-dir", metavar="DIR", help="the setting results-dir")
    parser.add_argument("--resume", metavar="DIR", help="go on with the run that left this directory")
    return parser


def overrides(given: Sequence[str]) -> dict[str, Value]:
    """Settings from `-c`, in the syntax of `flwr run`, which passes over in silence what is not of the form key=value.

    Raises:
        UserError: the text is not of that syntax, or the file cannot be read.
    """
    from click import ClickException
    from flwr.common.config import parse_config_args

    for text in given:
        if not text.endswith(".toml"):
            if fault := _fault(text):
                raise UserError(f"-c {text!r}: {fault}")
        elif not Path(text).expanduser().is_file():
            raise UserError(f"-c {text}: there is no such file ({Path(text).expanduser().absolute()})")
    found: dict[str, Value] = {}
    try:
        for text in given:  # of several, Flower takes one file only, and drops keys of a section given twice
            found |= dict(parse_config_args([text]))
        return found
    except (ValueError, ClickException) as error:
        raise UserError(f"-c {' '.join(given)}: {getattr(error, 'message', error)}") from error


def asked_for(texts: Sequence[str], given: Collection[str]) -> set[str]:
    """Of the keys that several `-c` give, those for this run alone, in no file, and those `of_no_method`."""
    return {*overrides([text for text in texts if not text.endswith(".toml")]), *of_no_method(given)}


_GIVEN = re.compile(r"(?:^|(?<=\s))([\w.-]+)=('[^']*'|\"[^\"]*\"|\S+)")
"""A key and its value, as Flower reads them."""
_VALUE = re.compile(r"true|false|'[^']*'|\"[^\"]*\"|[+-]?(\d[\w.+-]*|\.\d+|inf|nan)", re.DOTALL)
"""What a value can be."""


def _fault(text: str) -> str:
    """What is wrong with the settings of one `-c`; empty if nothing is. Of several `-c`, the later one wins."""
    seen: dict[str, str] = {}
    for key, value in _GIVEN.findall(text):
        if not _VALUE.fullmatch(value):
            return f"{key}={value}: {_wanted(key, value)}"
        if key in seen:
            return f"{key} is given twice, as {seen[key]} and as {value}: wanted it once"
        seen[key] = value
    if stray := re.sub(r"\S+?=('[^']*'|\"[^\"]*\"|\S+)", "", text).strip():
        hint = "; the name of a file with settings ends in .toml" if Path(text).expanduser().exists() else ""
        return f"{stray!r} is not of the form key=value (no blanks around =){hint}"
    return ""


def _wanted(key: str, value: str) -> str:
    """What is wanted in place of a value that is neither in quotes nor a number or a truth value."""
    if value.lower() in ("true", "false", "yes", "no", "on", "off"):
        return "a truth value is true or false, in small letters"
    if value[0] in "'\"":
        return "the quote is not closed"
    if value[0] in "[{":
        return "wanted a number, a truth value or a text in quotes"
    return f'a text needs quotes, {key}="{value}"'


def run(given: dict[str, Value], simulation: Simulation, left: list[Path], asked: Collection[str]) -> None:
    """Run a federation with these settings, of which `asked` were given here; its directory is added to `left`."""
    from fedham_flwr.server_app import make_server_app

    run_backend(make_server_app(given, left.append, asked), given, simulation)
