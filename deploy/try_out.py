"""A whole federation on this machine, for trying out: certificates, keys, a SuperLink, SuperNodes, and one run.

    python deploy/try_out.py                                       # four made-up sites, fedper, 3 rounds
    python deploy/try_out.py -c 'strategy="fedham" num-server-rounds=5'
    python deploy/try_out.py --dataset heart_disease --client-column center --features "age sex cp trestbps chol"
    python deploy/try_out.py --dir there --keep                    # leave it running; go on with `flwr run`
    python deploy/try_out.py stop --dir there

Everything listens on loopback, with TLS and node authentication, on ports that are free. All files go into one folder.
Whatever happens, Ctrl-C too, what it started is stopped, and nothing else. It uses the Python environment that it is
run in, and no network.
"""

from __future__ import annotations

import argparse
import signal
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE)]  # the project need not be installed

from run_simulation import end_at_once  # noqa: E402

if __name__ == "__main__":
    end_at_once()  # until `main`, since what follows takes seconds to import

import sites  # noqa: E402
from federation import CONNECTION, Federation  # noqa: E402
from marked import FederationError, processes, stop  # noqa: E402
from parts import Value  # noqa: E402

from fedham_flwr.core.errors import UserError  # noqa: E402

DEFAULTS: dict[str, Value] = {"strategy": "fedper", "num-server-rounds": 3, "round-timeout": 300.0}


def main() -> int:
    """The command; returns its exit code."""
    given = _arguments()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # also where a shell has started this in the background
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: sys.exit(143))
    try:
        if given.action == "stop":
            return _stop(given.dir)
        folder = given.dir or Path(tempfile.mkdtemp(prefix="fedham-"))
        if processes(folder):
            raise FederationError(f"a federation is running in {folder}: stop it by: {_how_to_stop(folder)}")
        return _try_out(folder, given)
    except (FederationError, UserError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted, and all stopped", file=sys.stderr)
        return 130


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="A whole federation on this machine, for trying out.")
    parser.add_argument("action", nargs="?", choices=["run", "stop"], default="run")
    parser.add_argument("--dir", type=Path, help="folder for all files; without: a new temporary one")
    parser.add_argument(
        "-c", dest="config", default="", metavar="SETTINGS", help="settings of the run, or a .toml file"
    )
    parser.add_argument("--keep", action="store_true", help="leave the SuperLink and the SuperNodes running")
    sites.arguments(parser)
    given = parser.parse_args()
    if given.action == "stop" and given.dir is None:
        parser.error("stop needs --dir")
    return given


def _try_out(folder: Path, given: argparse.Namespace) -> int:
    made = sites.make(folder / "sites", given.dataset, given.client_column, given.features.split(), given.label)
    federation = Federation(folder, HERE.parent, DEFAULTS | made.settings)
    try:
        print(f"all files are in {federation.folder}")
        federation.start_superlink()
        print(f"SuperLink  127.0.0.1:{federation.port}, TLS, only SuperNodes whose keys are registered")
        federation.start_nodes(made.folders)
        for site, rows in made.rows.items():
            print(f"SuperNode  {site}, {rows} rows, log {federation.log(f'node-{site}')}")
        run = federation.start_run(given.config)
        run.follow(_show)
        outcome = run.wait()
    except BaseException:
        _stop_quietly(federation)
        raise
    if given.keep:
        _say_how_to_go_on(federation)
    else:
        _stop_quietly(federation)
    return outcome.code


def _stop_quietly(federation: Federation) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a second Ctrl-C does not leave half of it running
    federation.stop()
    signal.signal(signal.SIGINT, signal.default_int_handler)


def _stop(folder: Path) -> int:
    print(f"{stop(folder)} processes stopped")
    return 0


def _show(text: str) -> None:
    print(text, end="", flush=True)


def _how_to_stop(folder: Path) -> str:
    return f"python {Path(__file__).resolve()} stop --dir '{folder}'"


def _say_how_to_go_on(federation: Federation) -> None:
    home, settings = federation.folder / "operator", federation.settings("")
    print(f"The federation goes on. Another run, from {federation.app}:")
    print(f"  FLWR_HOME='{home}' flwr run . {CONNECTION} --stream -c '{settings}'")
    print(f"Stop it by:\n  {_how_to_stop(federation.folder)}")


if __name__ == "__main__":
    raise SystemExit(main())
