"""What one run has left, read as it is needed: its settings, its scores of the end, and what was sent until when."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

from fedham_flwr.core.errors import UserError, cause
from fedham_flwr.core.records import MEMBER, Phase, RoundRecord, Row
from fedham_flwr.reporting.mixing_weights import read_weights
from fedham_flwr.reporting.parquet import read_part
from fedham_flwr.reporting.run_directory import RunDirectory, read_rows, to_rows
from fedham_flwr.reporting.summary import waited

if TYPE_CHECKING:
    import pyarrow

Split = Literal["test", "validation"]


class Point(NamedTuple):
    """The score of every client's model at one moment of a run.

    Attributes:
        round: of the server.
        bytes: sent up and down by the whole federation in the training of the rounds before, which made the model.
        seconds: that these exchanges took, as the server saw them.
        value: mean over the clients.
    """

    round: int
    bytes: int
    seconds: float
    value: float


@dataclass(frozen=True)
class RunFacts:
    """A run that has come to its end, and where it stands in a comparison.

    Attributes:
        directory: of the run.
        method: its label.
        task: the label of its data and their split.
        seed: of the run.
        settings: all of them, by key.
        summary: of `summary.json`.
        environment: of `environment.json`.
        key: in a study; empty otherwise.
    """

    directory: Path
    method: str
    task: str
    seed: int
    settings: Mapping[str, Any] = field(repr=False)
    summary: Mapping[str, Any] = field(repr=False)
    environment: Mapping[str, Any] = field(repr=False)
    key: str = ""

    @property
    def strategy(self) -> str:
        """The setting."""
        return str(self.summary["strategy"])

    @property
    def metric(self) -> str:
        """Name of the metric that its rounds are compared by."""
        return str(self.summary["selection-metric"])

    @property
    def model(self) -> str:
        """Global or personal: which model the method stands for."""
        return str(self.summary["exported"]["model"])

    @property
    def phase(self) -> Phase:
        """Whether that model is the one before or the one after local training."""
        return "after" if self.summary["exported"]["phase"] == "after" else "before"

    @property
    def data_seed(self) -> int:
        """Of the partition and the splits: -1 where they follow the run's seed."""
        return int(self.settings.get("data-seed", -1))

    def entry(
        self, phase: str = "", split: Split = "test", metric: str = "", population: str = MEMBER
    ) -> Mapping[str, Any] | None:
        """The statistics over clients of the closing evaluation; None if it was not measured.

        Args:
            phase: before or after; by default that of the model that the method stands for.
            split: of the samples.
            metric: its name; by default the one that rounds are compared by.
            population: member or novel.
        """
        phase, metric = phase or self.phase, metric or self.metric
        wanted = {"phase": phase, "split": split, "metric": metric, "population": population}
        found = [each for each in self.summary["final"] if all(each[name] == wanted[name] for name in wanted)]
        found.sort(key=lambda each: each["model"] != self.model)
        return found[0] if found else None

    def value(self, phase: str = "", split: Split = "test", metric: str = "", population: str = MEMBER) -> float | None:
        """Mean over clients, each counted once, in the closing evaluation; the arguments are those of `entry`."""
        entry = self.entry(phase, split, metric, population)
        return None if entry is None or entry["mean"] is None else float(entry["mean"])

    def per_client(
        self, phase: str = "", split: Split = "test", metric: str = "", population: str = MEMBER
    ) -> dict[str, float]:
        """Client -> its score in the closing evaluation; the arguments are those of `entry`."""
        entry = self.entry(phase, split, metric, population)
        if entry is None:
            return {}
        wanted = [entry[name] for name in ("split", "model", "phase", "metric", "population")]
        return {
            row.client: row.value
            for row in self.closing
            if [row.split, row.model, row.phase, row.metric, row.population] == wanted
        }

    @cached_property
    def closing(self) -> tuple[Row, ...]:
        """The rows of the closing evaluation, of which alone the files are read."""
        last = max(int(entry["round"]) for entry in self.summary["final"])
        found: list[Row] = []
        for part in sorted((self.directory / "metrics").glob(f"round-{last:05d}-*.parquet")):
            table = read_part(part)
            if "population" not in table.column_names:  # of a run from before there were novel clients
                table = table.append_column("population", [[MEMBER] * len(table)])
            found += to_rows(table)
        return tuple(found)

    @cached_property
    def rows(self) -> pyarrow.Table:
        """All rows, sorted by round, client, split, model, phase and metric."""
        return read_rows(self.directory)

    @cached_property
    def rounds(self) -> tuple[RoundRecord, ...]:
        """All exchanges with the clients.

        Raises:
            UserError: what is written of them is damaged.
        """
        try:
            return tuple(RunDirectory(self.directory).read_rounds())
        except (ValueError, TypeError, KeyError) as error:
            file = self.directory / "rounds.jsonl"
            raise UserError(
                f"{file} cannot be read: {cause(error)}; wanted a line of JSON for each exchange"
            ) from error

    @cached_property
    def clients(self) -> tuple[Mapping[str, Any], ...]:
        """Who took part, as in `clients.json`."""
        return tuple(RunDirectory(self.directory).read_clients())

    @cached_property
    def mixing(self) -> pyarrow.Table:
        """Who learned from whom: round, client, group, peer, weight; empty for a method that does not mix."""
        return read_weights(self.directory)

    @cached_property
    def spent(self) -> Mapping[int, tuple[int, float]]:
        """Round -> bytes and seconds of the training of all rounds before it.

        Training is the exchanges of kind train, with the questions asked before them: what is for scoring only depends
        on how often one looks, and is left out.
        """
        found: dict[int, tuple[int, float]] = {}
        size, seconds, asked = 0, 0.0, (0, 0.0)
        for record in self.rounds:
            found.setdefault(record.round, (size, seconds))
            here = (asked[0] + record.bytes_up + record.bytes_down, asked[1] + waited(record))
            asked = here if record.kind == "query" else (0, 0.0)
            if record.kind == "train":
                size, seconds = size + here[0], seconds + here[1]
        return found

    def curve(self, split: Split = "test", phase: str = "", metric: str = "") -> tuple[Point, ...]:
        """The scores over the rounds in which all clients of the closing evaluation were scored.

        Args:
            split: of the samples.
            phase: before or after; by default that of the model that the method stands for.
            metric: its name; by default the one that rounds are compared by.
        """
        entry = self.entry(phase, split, metric)
        if entry is None:
            return ()
        table = self.rows
        wanted = {name: str(entry[name]) for name in ("split", "model", "phase", "metric", "population")}
        rounds, values = _chosen(table, wanted)
        numbers, places, counts = np.unique(rounds, return_inverse=True, return_counts=True)
        means = np.bincount(places, values, len(numbers)) / counts
        whole = [at for at in range(len(numbers)) if counts[at] == entry["clients"] and int(numbers[at]) in self.spent]
        return tuple(Point(int(numbers[at]), *self.spent[int(numbers[at])], float(means[at])) for at in whole)


def _chosen(table: pyarrow.Table, wanted: Mapping[str, str]) -> tuple[np.ndarray, np.ndarray]:
    """Round and value of the rows that are wanted."""
    import pyarrow.compute as pc

    for name, value in wanted.items():
        table = table.filter(pc.equal(table[name], value))
    return table["round"].to_numpy(), table["value"].to_numpy()
