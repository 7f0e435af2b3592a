"""Run a federation on this machine: `python run_simulation.py -c 'strategy="fedavg" num-server-rounds=5'`."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from fedham_flwr.config import Value, parse
from fedham_flwr.errors import UserError


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line, run, and return the exit code: 0 when the run came to its end, 1 when it did not."""
    os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
    options = parser().parse_args(arguments)
    try:
        given = overrides(options.run_config) | ({"results-dir": options.results_dir} if options.results_dir else {})
        parse(given)
        run(given, options.num_supernodes, options.backend, options.num_cpus)
    except UserError as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        return 130
    return 0


def parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, epilog="The settings are listed in pyproject.toml.")
    parser.add_argument("-c", "--run-config", action="append", metavar="'KEY=VALUE ...' | FILE.toml", help="settings")
    parser.add_argument("--num-supernodes", type=positive, default=10, metavar="N", help="clients (default 10)")
    parser.add_argument("--backend", choices=("ray", "in-process"), default="ray", help="default ray")
    parser.add_argument("--num-cpus", type=positive, default=1, metavar="N", help="of one Ray worker (default 1)")
    parser.add_argument("--results-dir", metavar="DIR", help="the setting results-dir")
    return parser


def positive(text: str) -> int:
    """A whole number from 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1")
    return int(text)


def overrides(run_config: Sequence[str] | None) -> dict[str, Value]:
    """Settings from `-c`, in the syntax of `flwr run`.

    Raises:
        UserError: the text is not of that syntax, or the file cannot be read.
    """
    from click import ClickException
    from flwr.common.config import parse_config_args

    for text in run_config or ():
        if text.endswith(".toml") and not Path(text).expanduser().is_file():
            raise UserError(f"-c {text}: there is no such file ({Path(text).expanduser().absolute()})")
    try:
        return dict(parse_config_args(list(run_config or ())))
    except (ValueError, ClickException) as error:
        reason = error.message if isinstance(error, ClickException) else str(error)
        raise UserError(f"-c {' '.join(run_config or ())}: {reason}") from error


def run(given: Mapping[str, Value], clients: int, backend: str, cpus: int) -> None:
    """Run the apps with these settings, in this process or under Ray."""
    from fedham_flwr.client_app import make_client_app
    from fedham_flwr.server_app import make_server_app

    apps = make_server_app(given), make_client_app(given)
    if backend == "in-process":
        from fedham_flwr.in_process import run_in_process

        run_in_process(*apps, clients)
    else:
        from fedham_flwr.simulation import run_under_ray

        run_under_ray(*apps, clients, cpus)


if __name__ == "__main__":
    sys.exit(main())
