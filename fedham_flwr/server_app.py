"""Settings -> model -> strategy -> rounds -> results: the app that runs on the server."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from fedham_flwr import models, parameters, report, wire
from fedham_flwr.checkpoints import dealt_otherwise, read_start
from fedham_flwr.config import Settings, Value, defaults, flatten, parse
from fedham_flwr.errors import UserError
from fedham_flwr.mixing import MixingWeights, latest, read_weights, write_weights
from fedham_flwr.mixing_plots import heat_maps, self_weight_curves
from fedham_flwr.parameters import Manifest
from fedham_flwr.plots import client_bars, learning_curves
from fedham_flwr.results import RoundRecord, Row, RunDirectory, read_rows, to_rows
from fedham_flwr.roster import Roster, agree, hold_out, order
from fedham_flwr.scores import digest, final, selected
from strategies import STRATEGIES
from strategies.base import RoundStrategy, Task

log = logging.getLogger("fedham_flwr")


def make_server_app(given: Mapping[str, Value] | None = None) -> ServerApp:
    """The app, with settings given here or, by default, taken from the run's config.

    Args:
        given: settings by key, as in pyproject.toml.
    """
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        try:
            run(grid, parse(context.run_config if given is None else given))
        except UserError as error:
            if given is None:  # a process of Flower's own, which is about to print the stack and end
                sys.tracebacklimit = 0
                log.error("%s", error)
            raise

    return app


def run(grid: Grid, settings: Settings) -> None:
    """A whole run: find the clients, train, evaluate, and write and print what came of it.

    Whatever ends the run early, the results so far and the server's state are written first.

    Args:
        grid: the way to the clients.
        settings: the run's.

    Raises:
        UserError: the results cannot be written, the clients cannot be reached or do not fit together, or too few
            of them gave a good reply.
    """
    began = time.perf_counter()
    directory = RunDirectory.create(settings.results_dir, settings.strategy, settings.seed, flatten(settings))
    report.settings_table(flatten(settings), defaults())
    journal = Journal(directory, settings, began)
    try:
        strategy = prepare(grid, settings, directory, journal)
        with journal:
            strategy.run(grid)
    except BaseException as error:
        journal.finish(error)
        raise
    journal.finish()


def prepare(grid: Grid, settings: Settings, directory: RunDirectory, journal: Journal) -> RoundStrategy:
    """Wait for the clients, and build the model that fits their data and the strategy that serves them.

    Raises:
        UserError: too few clients came, their samples differ in shape, or the model does not fit them or what it is to
            start from.
    """
    roster = Roster()
    roster.discover(grid, settings.min_clients, settings.client_timeout, settings.round_timeout)
    profiles = [roster.profiles[client] for client in order(roster.nodes)]
    shape, classes = agree(profiles)
    novel = set(hold_out(settings.seed, roster.nodes, settings.novel_clients))
    clients = [describe(profile) | {"novel": profile.client in novel} for profile in profiles]
    directory.write_clients(clients)
    report.data_table(clients)
    model = models.build(settings.model, shape, classes, settings.seed, settings.networks())
    manifest = Manifest.of(model)
    # A simulation shares the file system with its clients; a real client keeps its model to itself.
    export = str(directory.path / "model") if any(p.partitions for p in profiles) else ""
    strategy = STRATEGIES[settings.strategy](
        settings,
        manifest,
        parameters.read(model, manifest.names()),
        Task(shape, classes, export),
        roster,
        journal.record,
    )
    report.say(strategy.describe())
    network = models.resolve(settings.model, shape)
    if settings.resume:
        start_from(settings, strategy, network)
    journal.started(
        strategy,
        network,
        {p.client for p in profiles if p.counts["validation"] and p.client not in novel},
    )
    return strategy


def start_from(settings: Settings, strategy: RoundStrategy, network: str) -> None:
    """Let a run begin with what an earlier one has trained, and say which it was.

    Args:
        settings: the run's, with `resume`.
        strategy: it gets the models.
        network: name of the network, `auto` resolved.

    Raises:
        UserError: there is nothing, or it does not fit.
    """
    clients = order(strategy.roster.nodes)
    start = read_start(settings.resume, strategy.manifest, strategy.shared_names, network, clients)
    strategy.start_from(start.common, start.own)
    report.say(f"start: {start.source}")
    if differs := dealt_otherwise(settings.resume, flatten(settings)):
        log.warning(
            "the start was trained on data dealt with %s, not as in this run: what a client tests on now, it or "
            "another may have trained on then",
            ", ".join(differs),
        )


def describe(profile: wire.Profile) -> dict[str, object]:
    """Who a client is and what it has: a row of the table that is shown, and an entry of clients.json."""
    return {
        "client": profile.client,
        "name": profile.name,
        **profile.counts,
        "classes": sum(n > 0 for n in profile.labels),
        "train-labels": list(profile.labels),
    }


@dataclass
class Journal:
    """Takes down what every exchange brought, shows it, and sums it up at the end.

    Attributes:
        directory: where the results go.
        settings: the run's.
        began: when the run began, by `time.perf_counter`.
    """

    directory: RunDirectory
    settings: Settings
    began: float
    _strategy: RoundStrategy | None = None
    _model: str = ""
    _validated: set[str] = field(default_factory=set)
    _ready: float | None = None
    _rounds: list[float] = field(default_factory=list)
    _failures: int = 0
    _bytes: dict[str, dict[str, int]] = field(default_factory=dict)
    _progress: report.Progress | None = None
    _stack: ExitStack = field(default_factory=ExitStack)

    def started(self, strategy: RoundStrategy, model: str, validated: set[str]) -> None:
        """The clients are there and the first round can begin.

        Args:
            strategy: whose state is to be saved.
            model: name of the network.
            validated: clients that have validation samples.
        """
        self._strategy, self._model, self._validated = strategy, model, validated
        self._ready = time.perf_counter()

    def __enter__(self) -> Journal:
        """Show the progress."""
        rounds = self._strategy.rounds if self._strategy else self.settings.num_server_rounds
        self._progress = self._stack.enter_context(report.Progress(rounds, self.settings.strategy))
        return self

    def __exit__(self, *_: object) -> None:
        """End the display."""
        self._stack.close()

    def record(self, record: RoundRecord, rows: Sequence[Row], weights: MixingWeights | None) -> None:
        """Write and show the results of one exchange."""
        if weights is not None:
            write_weights(self.directory.path, record.round, record.kind, weights)
        self.directory.write_round(record, rows)
        self._failures += len(record.failures)
        total = self._bytes.setdefault(record.kind, {"up": 0, "down": 0})
        total["up"] += record.bytes_up
        total["down"] += record.bytes_down
        if self._progress is None:
            return
        self._progress.failed(record.failures)
        if record.kind not in ("train", "personal"):
            return
        seconds = sum(record.seconds[part] for part in ("exchange", "check"))
        values = report.line_values(rows, len(record.cohort), record.replies, seconds)
        if record.kind == "personal":
            self._progress.stage("personal stage", values)
        else:
            self._rounds.append(seconds)
            self._progress.round(record.round, values)

    def finish(self, error: BaseException | None = None) -> None:
        """Write the server's state, the summary and the pictures, and print the final table.

        Args:
            error: what ended the run early.
        """
        rows = to_rows(read_rows(self.directory.path))
        summary = self._summary(rows, error)
        strategy = self._strategy
        if strategy is not None:
            state = strategy.state_dict()
            self.directory.save_state(state, {"strategy": self.settings.strategy, "model": self._model})
            summary["digest"] = digest(state, rows)
        self.directory.finish(summary)
        self._draw(rows)
        report.final_table({"final": final(rows), "selected": selected(rows, self._validated)})
        report.last_line(self.directory.path)

    def _draw(self, rows: Sequence[Row]) -> None:
        path, what = self.directory.path, (self.settings.strategy, self.settings.dataset)
        learning_curves(rows, path / "learning-curves.png", *what)
        client_bars(rows, path / "clients.png", *what)
        if weights := read_weights(path):
            heat_maps(latest(weights), path / "mixing-weights.png", *what)
            self_weight_curves(weights, path / "self-weights.png", *what)

    def _summary(self, rows: Sequence[Row], error: BaseException | None) -> dict[str, object]:
        now = time.perf_counter()
        summary: dict[str, object] = {
            "strategy": self.settings.strategy,
            "dataset": self.settings.dataset,
            "model": self._model or self.settings.model,
            "seed": self.settings.seed,
            "num-clients": len(self._strategy.roster.profiles) if self._strategy else 0,
            "num-rounds": len(self._rounds),
            "failures": self._failures,
            "final": final(rows),
            "selected": selected(rows, self._validated),
            "seconds": {
                "start-up": (self._ready or now) - self.began,
                "per-round": sum(self._rounds) / len(self._rounds) if self._rounds else None,
                "total": now - self.began,
            },
            "bytes": {way: sum(kind[way] for kind in self._bytes.values()) for way in ("up", "down")}
            | {kind: dict(ways) for kind, ways in self._bytes.items()},
        }
        return summary if error is None else summary | {"error": f"{type(error).__name__}: {error}"}


app = make_server_app()
