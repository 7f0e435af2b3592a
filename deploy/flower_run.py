"""A run of the application on a federation: started by `flwr run`, watched by its log and its directory."""

from __future__ import annotations

import json
import re
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from marked import POLL, FederationError


@dataclass(frozen=True)
class Outcome:
    """What came of a run.

    Attributes:
        code: 0 if its server application ended well.
        output: what `flwr run --stream` showed.
        path: the run's directory; None if it was over before there was one.
    """

    code: int
    output: str
    path: Path | None

    @property
    def records(self) -> list[dict[str, Any]]:
        """The lines of rounds.jsonl."""
        return _records(self.path)

    @property
    def summary(self) -> dict[str, Any]:
        """summary.json."""
        return dict(json.loads((self.path / "summary.json").read_text())) if self.path else {}


@dataclass
class Run:
    """A run that goes on.

    Attributes:
        process: `flwr run --stream`.
        log: what it shows.
        directories: gives those of all runs.
        status: gives what Flower says of the run with this id.
        before: directories that were there before.
    """

    process: subprocess.Popen[bytes]
    log: Path
    directories: Callable[[], set[Path]]
    status: Callable[[str], str]
    before: frozenset[Path] = field(init=False)

    def __post_init__(self) -> None:
        self.before = frozenset(self.directories())

    @property
    def path(self) -> Path | None:
        """The run's directory, as soon as it is there; of a run that was resumed, at its end."""
        named = re.findall(r"^results: (.+)$", self.log.read_text(errors="replace"), re.MULTILINE)
        if named:  # at its end; before, of two runs at a time, this can be the other's
            return Path(named[-1].strip())
        new = self.directories() - self.before
        return max(new, key=lambda path: path.stat().st_ctime) if new else None

    @property
    def records(self) -> list[dict[str, Any]]:
        """The lines of rounds.jsonl so far."""
        return _records(self.path)

    def wait_for_round(self, number: int, timeout: float = 180.0) -> None:
        """Wait until the results of a round are there.

        Raises:
            FederationError: they were not in time, or the run ended without.
        """

        def there() -> bool:
            return any(record["round"] >= number for record in self.records)

        wait_until(there, timeout, f"round {number} of the run", self.log, self.process)

    def follow(self, write: Callable[[str], object]) -> None:
        """Give what the run shows, as it comes, until it ends.

        Args:
            write: takes pieces of text.
        """
        with self.log.open(errors="replace") as log:
            going = True
            while going:
                going = self.process.poll() is None
                write(log.read())
                time.sleep(POLL)

    def wait(self, timeout: float = 600.0) -> Outcome:
        """Wait for the end of the run.

        Args:
            timeout: seconds.

        Raises:
            FederationError: it did not end in time; the SuperLink is then still busy with it.
        """
        try:
            code = self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise FederationError(f"the run did not end within {timeout:g} seconds\n{tail(self.log)}") from None
        output = self.log.read_text(errors="replace")
        return Outcome(code or self._failed(output), output, self.path)

    def _failed(self, output: str) -> int:
        """1 if the server application did not end well, which the exit code of `flwr run` does not tell."""
        found = re.search(r"started run (\d+)", output)
        return int(found is None or self.status(found[1]) != "finished:completed")


def wait_until(
    there: Callable[[], bool], timeout: float, what: str, log: Path, process: subprocess.Popen[bytes]
) -> None:
    """Wait until something is there.

    Args:
        there: says whether it is.
        timeout: seconds.
        what: the thing, for the error.
        log: whose end the error shows.
        process: which must live until then.

    Raises:
        FederationError: it is not there in time, or the process has ended.
    """
    end = time.monotonic() + timeout
    while not there():
        if process.poll() is not None and not there():
            raise FederationError(f"{what} ended early, with exit code {process.returncode}\n{tail(log)}")
        if time.monotonic() > end:
            raise FederationError(f"{what} was not there within {timeout:g} seconds\n{tail(log)}")
        time.sleep(POLL)


def tail(log: Path, lines: int = 20) -> str:
    """The end of a log."""
    return "\n".join(log.read_text(errors="replace").splitlines()[-lines:]) if log.exists() else ""


def _records(path: Path | None) -> list[dict[str, Any]]:
    file = path / "rounds.jsonl" if path else None
    if file is None or not file.exists():
        return []
    return [json.loads(line) for line in file.read_text().splitlines(keepends=True) if line.endswith("\n")]
