"""Run a federation on this machine: `python run_simulation.py -c 'strategy="fedavg" num-server-rounds=5'`."""

import atexit
import contextlib
import os
import signal
import sys

INTERRUPTED = 130


def fedham() -> int:
    """The command `fedham`."""
    end_at_once()
    from fedham_flwr.cli import main

    return _ended(main())


def end_at_once() -> None:
    """While modules are imported, which takes seconds, an interrupt ends the process: there is nothing to write."""

    def leave(*_: object) -> None:
        os.write(2, b"interrupted\n")
        os._exit(INTERRUPTED)

    leave.for_imports = True  # type: ignore[attr-defined]  # whoever can do better may take its place
    signal.signal(signal.SIGINT, leave)


def _ended(code: int) -> int:
    """The exit code, which an interrupt of the interpreter's own end would be too late for.

    After an interrupt the process ends here: threads of a Ray that was still starting crash the interpreter's own end.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if code == INTERRUPTED:
        atexit._run_exitfuncs()  # Ray's ends its processes
        with contextlib.suppress(OSError):  # nobody reads it any more
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)
    return code


if __name__ == "__main__":
    end_at_once()
    from fedham_flwr.cli import run_command

    sys.exit(_ended(run_command()))
