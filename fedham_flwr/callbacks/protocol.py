"""What a callback is told of a run, and what it may answer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol, runtime_checkable

from fedham_flwr.core.records import MEMBER, Failure, Row

Value = bool | int | float | str


@dataclass(frozen=True)
class RunStart:
    """A run whose first round is about to begin.

    Attributes:
        directory: of the run.
        settings: all of them by key, as in config.toml.
        strategy: the method.
        network: its name, `auto` resolved.
        clients: how many there are.
        rounds: how many rounds there are to be.
        done: rounds that are behind it: above 0 for a run that is continued.
        metric: by which rounds are compared.
        metrics: name of each that is measured, and of the loss -> whether higher is better.
        validated: how many clients have validation samples.
    """

    directory: Path
    settings: Mapping[str, Value]
    strategy: str
    network: str
    clients: int
    rounds: int
    done: int
    metric: str
    metrics: Mapping[str, bool]
    validated: int


class Statistic(NamedTuple):
    """One number over clients.

    Attributes:
        split: validation or test.
        model: global or personal.
        phase: before or after local training.
        metric: its name.
        population: member, or novel for clients that never train.
        mean: each client counts once.
        weighted_mean: each sample counts once.
        std: over clients, divided by their number.
        worst_decile: mean of the worst tenth of the clients, rounded up to whole clients.
        clients: how many.
    """

    split: str
    model: str
    phase: str
    metric: str
    population: str
    mean: float
    weighted_mean: float
    std: float
    worst_decile: float
    clients: int

    @property
    def path(self) -> str:
        """What it is of, such as `test/personal/before/accuracy`; of novel clients with `novel/` before it."""
        before = "" if self.population == MEMBER else f"{self.population}/"
        return f"{before}{self.split}/{self.model}/{self.phase}/{self.metric}"


@dataclass(frozen=True)
class RoundReport:
    """What a round brought, all its exchanges with the clients together.

    Attributes:
        round: its number, from 1; that of the closing evaluation is one above the last round's.
        kinds: of its exchanges: query, train, evaluate, personal, ... as in `rounds.jsonl`.
        statistics: over clients.
        rows: the numbers of each client that these are of.
        validation: metric -> its mean over the validation samples of all clients, of the model that the method stands
            for; empty unless every client was evaluated.
        seconds: that the exchanges took.
        bytes_up: from the clients.
        bytes_down: to the clients.
        failures: of clients.
        closing: the rounds are over.
        again: the run is continued, and this round is told once more.
        value: `validation` of the metric by which rounds are compared; None unless every client was evaluated.
    """

    round: int
    kinds: tuple[str, ...]
    statistics: tuple[Statistic, ...]
    rows: tuple[Row, ...]
    validation: Mapping[str, float]
    seconds: float
    bytes_up: int
    bytes_down: int
    failures: tuple[Failure, ...]
    closing: bool = False
    again: bool = False
    value: float | None = None


@dataclass(frozen=True)
class RunEnd:
    """The end of a run.

    Attributes:
        summary: what `summary.json` says.
        error: what ended it before its time; None if it has come to its end, or a callback has ended it.
    """

    summary: Mapping[str, object]
    error: str | None = None


@runtime_checkable
class Callback(Protocol):
    """Is told of a run in the server's process. A class that derives from it has methods that do nothing.

    What it holds of a run is set in `on_start`: the same object may see several runs. A run that is continued tells
    `on_round` first of the rounds that are behind it, so what is made of these is as if it had never been interrupted.
    """

    def on_start(self, run: RunStart) -> None:
        """Called before the first round.

        Args:
            run: what there is to know of it.

        Raises:
            UserError: it cannot do its work in this run, which then does not begin.
        """
        return

    def on_round(self, report: RoundReport) -> str | None:
        """Called after each round, and after the closing evaluation.

        Args:
            report: what it brought.

        Returns:
            Why the run should end with this round, in a few words; None to go on. The closing evaluation follows.
        """
        return None

    def on_end(self, end: RunEnd) -> None:
        """Called when all has been written.

        Args:
            end: the summary, and what ended the run before its time.
        """
        return
