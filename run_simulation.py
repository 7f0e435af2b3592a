"""Run a federation on this machine: `python run_simulation.py -c 'strategy="fedavg" num-server-rounds=5'`."""

import os
import signal
import sys


def fedham() -> int:
    """The command `fedham`."""
    _end_at_once()
    from fedham_flwr.cli import main

    return _can_be_interrupted() or main()


def _end_at_once() -> None:
    """While modules are imported, which takes seconds, an interrupt ends the process: there is nothing to write."""

    def leave(*_: object) -> None:
        os.write(2, b"interrupted\n")
        os._exit(130)

    signal.signal(signal.SIGINT, leave)


def _can_be_interrupted() -> int:
    signal.signal(signal.SIGINT, signal.default_int_handler)
    return 0


if __name__ == "__main__":
    _end_at_once()
    from fedham_flwr.cli import run_command

    sys.exit(_can_be_interrupted() or run_command())
