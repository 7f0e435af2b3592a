"""Run a federation on this machine: `python run_simulation.py -c 'strategy="fedavg" num-server-rounds=5'`."""

import os
import signal
import sys


def fedham() -> int:
    """The command `fedham`."""
    end_at_once()
    from fedham_flwr.cli import main

    return _ended(main())


def end_at_once() -> None:
    """While modules are imported, which takes seconds, an interrupt ends the process: there is nothing to write."""

    def leave(*_: object) -> None:
        os.write(2, b"interrupted\n")
        os._exit(130)

    leave.for_imports = True  # type: ignore[attr-defined]  # whoever can do better may take its place
    signal.signal(signal.SIGINT, leave)


def _ended(code: int) -> int:
    """The exit code, which an interrupt of the interpreter's own end would be too late for."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    return code


if __name__ == "__main__":
    end_at_once()
    from fedham_flwr.cli import run_command

    sys.exit(_ended(run_command()))
