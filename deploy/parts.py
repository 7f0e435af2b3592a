"""Parts of a federation: programs in the background, each with a log, a mark and a home of its own."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import marked
from marked import FederationError

HOST = "127.0.0.1"
Value = str | int | float | bool


@dataclass
class Parts:
    """What runs, and below which folder.

    Attributes:
        folder: for all its files; made, with mode 0700, where it is not there.
    """

    folder: Path
    _processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        self.folder = Path(os.path.abspath(self.folder))
        for name in ("", "logs", "superlink", "operator", "results", "nodes"):
            (self.folder / name).mkdir(mode=0o700, parents=True, exist_ok=True)
        self.folder.chmod(0o700)

    def environment(self, part: str) -> dict[str, str]:
        """The environment of a part, with the mark by which its processes are found."""
        home = {"superlink": "superlink"}.get(part, part.replace("node-", "nodes/") if "node-" in part else "operator")
        programs = Path(sys.executable).parent  # of the current virtual environment: Flower starts others by name
        return {
            "OMP_NUM_THREADS": "1",
            **os.environ,
            **marked.environment(self.folder, part),
            "FLWR_HOME": str(self.folder / home),
            "FLWR_TELEMETRY_ENABLED": "0",
            "FLWR_DISABLE_UPDATE_CHECK": "1",
            "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
            "PATH": f"{programs}{os.pathsep}{os.environ.get('PATH', '')}",
            "PYTHONUNBUFFERED": "1",
        }

    def log(self, part: str) -> Path:
        """Where a part writes what it shows."""
        return self.folder / "logs" / f"{part}.log"

    def stop(self, part: str = "") -> None:
        """Stop a part, or everything: SIGTERM, and SIGKILL for what is left after ten seconds."""
        marked.stop(self.folder, part)
        self._reap(part)

    def kill(self, part: str = "") -> None:
        """SIGKILL for a part, or for everything."""
        marked.stop(self.folder, part, patience=0.0)
        self._reap(part)

    def _reap(self, part: str) -> None:
        for name in [name for name in self._processes if part in ("", name)]:
            process = self._processes.pop(name)
            process.kill()  # has an effect only on a program that has overwritten its environment, and the mark in it
            process.wait()

    def start(self, part: str, command: list[str], folder: Path) -> subprocess.Popen[bytes]:
        """Start a program of the current virtual environment as a part, in a session of its own.

        Args:
            part: its name.
            command: the program and its arguments.
            folder: where it is to work.

        Raises:
            FederationError: there is no such program.
        """
        program = shutil.which(command[0], path=self.environment(part)["PATH"])
        if program is None:
            raise FederationError(f"there is no program {command[0]}: install the project in this environment")
        with self.log(part).open("ab") as log:
            process = subprocess.Popen(
                [program, *command[1:]],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=folder,
                env=self.environment(part),
                start_new_session=True,
                umask=0o077,
            )
        self._processes[part] = process
        return process


def free_port() -> int:
    """A port of loopback that nobody listens on, below those that the system gives to outgoing connections."""
    while True:
        port = 20000 + secrets.randbelow(12000)
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((HOST, port))
            except OSError:
                continue
        return port


def toml_line(values: Mapping[str, Value]) -> str:
    """Settings as `-c` and `--node-config` take them: `key=value` with blanks between.

    Raises:
        FederationError: a text has a quotation mark, which neither of them can read.
    """
    for key, value in values.items():
        if '"' in str(value):
            raise FederationError(f"{key} is {value}, but must have no quotation mark")
    return " ".join(f"{key}={json.dumps(value, ensure_ascii=False)}" for key, value in values.items())


def listens(port: int) -> bool:
    """Whether anybody takes connections at a port of loopback."""
    with socket.socket() as probe:
        probe.settimeout(1.0)
        return probe.connect_ex((HOST, port)) == 0


def call(command: list[str], environment: Mapping[str, str] | None = None) -> str:
    """What a short command prints to its standard output."""
    path = (environment or os.environ).get("PATH", "")
    program = shutil.which(command[0], path=path) or command[0]
    done = subprocess.run([program, *command[1:]], env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        said = f"{done.stdout}{done.stderr}".strip()
        raise FederationError(f"{' '.join(command[:3])} failed with exit code {done.returncode}\n{said}")
    return done.stdout
