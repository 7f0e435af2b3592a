"""Takes down what every exchange of a run brought: shows it, writes it, and sums it up at the end."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from fedham_flwr.core import privacy
from fedham_flwr.core.parameters import Params
from fedham_flwr.core.records import MixingWeights, RoundRecord, Row
from fedham_flwr.federation.answers import state_of
from fedham_flwr.federation.roster import order
from fedham_flwr.federation.rounds import RoundStrategy
from fedham_flwr.reporting import divergence, model_card
from fedham_flwr.reporting import terminal as report
from fedham_flwr.reporting.checkpointing import keep_checkpoint
from fedham_flwr.reporting.entries import describe, names_of
from fedham_flwr.reporting.followers import Followers
from fedham_flwr.reporting.group_weights import group_picture
from fedham_flwr.reporting.mixing_plots import heat_maps, self_weight_curves
from fedham_flwr.reporting.mixing_sample import sample
from fedham_flwr.reporting.mixing_weights import write_weights
from fedham_flwr.reporting.plots import client_bars, learning_curves
from fedham_flwr.reporting.progress import Progress, line_values
from fedham_flwr.reporting.run_directory import RunDirectory, read_rows, to_rows, unwritable
from fedham_flwr.reporting.summary import digest, ended, final, selected, traffic, waited
from fedham_flwr.resume import checkpoints
from fedham_flwr.run_settings import Settings
from fedham_flwr.training.metric_choice import selection
from fedham_flwr.training.metrics import ACCURACY, Metric


@dataclass
class Journal:
    """The account of one run.

    Attributes:
        directory: where the results go.
        settings: the run's.
        began: when the run began, by `time.perf_counter`.
        resumed: the rounds that it has been continued from.
        followers: the callbacks.
        more: entries of the summary from elsewhere, such as how a cohort's requests were carried out.
    """

    directory: RunDirectory
    settings: Settings
    began: float
    resumed: tuple[int, ...] = ()
    followers: Followers = field(default_factory=Followers)
    more: dict[str, object] = field(default_factory=dict)
    _measured: tuple[Metric, ...] = (ACCURACY,)
    _headline: Metric = ACCURACY
    _strategy: RoundStrategy | None = None
    _model: str = ""
    _validated: set[str] = field(default_factory=set)
    _ready: float | None = None
    _records: list[RoundRecord] = field(default_factory=list)
    _progress: Progress | None = None
    _stack: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)

    def measures(self, measured: tuple[Metric, ...]) -> None:
        """The clients will measure this.

        Args:
            measured: the run's metrics.

        Raises:
            UserError: the setting `selection-metric` names none of them.
        """
        self._measured, self._headline = measured, selection(self.settings.selection_metric, measured)

    def started(self, strategy: RoundStrategy, model: str) -> None:
        """The clients are there and the first round can begin.

        Args:
            strategy: whose state is to be saved.
            model: name of the network.

        Raises:
            UserError, CallbackError: a callback cannot follow this run.
        """
        self.followers.begin(self.directory, strategy, model, self._measured, self._headline)
        self._strategy, self._model = strategy, model
        self._records = self.directory.read_rounds()  # of a run that is continued
        self._ready = time.perf_counter()

    @property
    def begun(self) -> bool:
        """Whether there is anything to take down."""
        return self._strategy is not None

    def __enter__(self) -> Journal:
        """Show the progress."""
        rounds = self._strategy.rounds if self._strategy else self.settings.num_server_rounds
        self._progress = self._stack.enter_context(Progress(rounds, self.settings.strategy, metric=self._headline))
        return self

    def __exit__(self, *_: object) -> None:
        """End the display."""
        self._stack.close()

    # ---- while it runs -------------------------------------------------------------------------------------------

    def record(self, record: RoundRecord, rows: Sequence[Row], weights: MixingWeights | None) -> None:
        """Write and show the results of one exchange.

        Raises:
            UserError: they cannot be written.
        """
        try:
            if weights is not None:
                write_weights(self.directory.path, record.round, record.kind, weights)
            self.directory.write_round(record, rows)
        except OSError as error:
            raise unwritable(self.directory.path, error) from error
        self._records.append(record)
        self.followers.take(record, rows)
        if self._progress is None:
            return
        self._progress.failed(record.failures)
        values = line_values(rows, len(record.cohort), record.replies, waited(record), self._headline)
        if record.kind == "personal":
            self._progress.stage("personal stage", values)
        elif record.kind == "train":
            self._progress.round(record.round, values)

    def round_done(self, last: bool) -> bool:
        """Tell the callbacks; one of them may end the run, which is said."""
        stop = self.followers.round_done()
        if last or stop is None or self._strategy is None:
            return False
        number = self._strategy.progress.done
        self.more["stopped"] = {"round": number, "by": stop.by, "why": stop.why}
        if self._progress is not None:
            self._progress.note(f"stopped after round {number} by {stop.by}: {stop.why}")
        return True

    def checkpoint(self) -> None:
        """Write a checkpoint; a disk that is full is said and does not end the run, which has the one before."""
        assert self._strategy is not None
        keep_checkpoint(self.directory, self._strategy, self._model, len(self._records), self.resumed)

    # ---- at the end ----------------------------------------------------------------------------------------------

    def finish(self, error: BaseException | None = None) -> None:
        """Write the server's state, the summary and the pictures, and print the final table of a run that has begun.

        Args:
            error: what ended the run early.

        Raises:
            UserError: they cannot be written.
            CallbackError: a callback failed; all is written.
        """
        strategy = self._strategy
        assert strategy is not None
        rows = to_rows(read_rows(self.directory.path))
        split = {c: profile.counts.get("validation") for c, profile in strategy.setup.roster.profiles.items()}
        self._validated = {client for client in split if split[client] and client not in strategy.progress.novel}
        path = self.directory.path
        summary = ended(self._summary(rows), error, phase := strategy.settings.phase(closing=True))
        summary |= divergence.warnings_of(rows, phase)
        spent = self._spent(error is not None)
        if budget := privacy.budget(self.settings.dp, spent):
            summary["privacy"] = budget
        try:
            if (state := self._state(strategy, error)) is not None:
                label = {"strategy": self.settings.strategy, "model": self._model}
                checkpoints.write_state(path / checkpoints.SERVER, state, label, path)
                summary["digest"] = digest(state, rows)
            self.write_clients(strategy)
            model_card.complete(path, rows, self._records, self._headline)
            self._draw(rows)
            self.directory.finish(summary)  # the last of all: a run that has one has come to its end
        except OSError as why:
            raise unwritable(path, why) from why
        report.final_table(summary, metric=self._headline)
        if text := privacy.sentence(self.settings.dp, spent):
            report.say(text)
        divergence.say(summary)
        report.last_line(self.directory.path)
        self.followers.end(summary, error)

    def _state(self, strategy: RoundStrategy, error: BaseException | None) -> Params | None:
        """The server's state; None of a method that has failed, and cannot say it either."""
        with contextlib.suppress(*([Exception] if error else [])):
            return state_of(strategy)
        return None

    def _spent(self, interrupted: bool) -> dict[str, int]:
        """How often each client may have sent an update; also in what was undone, or what no record tells of."""
        exchanges = [*self.directory.read_rounds("undone.jsonl"), *self._records]
        everyone = self._strategy.setup.roster.profiles if self._strategy else ()
        return privacy.releases(exchanges, everyone, len(self.resumed) + interrupted)

    def write_clients(self, strategy: RoundStrategy) -> list[dict[str, object]]:
        """Write who takes part, and what they have; also those that came late. What was written."""
        profiles, novel = strategy.setup.roster.profiles, set(strategy.progress.novel)
        clients = {str(client["client"]): client for client in self.directory.read_clients()}  # of a run continued
        clients |= {client: describe(profiles[client]) | {"novel": client in novel} for client in profiles}
        everyone = [clients[client] for client in order(clients)]
        self.directory.write_clients(everyone)
        return everyone

    def _draw(self, rows: Sequence[Row]) -> None:
        path, what = self.directory.path, (self.settings.strategy, self.settings.dataset)
        learning_curves(rows, path / "learning-curves.png", *what, self._headline)
        names = {str(client["client"]): report.client_name(client) for client in self.directory.read_clients()}
        named = [row._replace(client=names.get(row.client, row.client)) for row in rows]
        client_bars(named, path / "clients.png", *what, self._headline)
        if shown := sample(path, self.settings.seed):
            heat_maps(shown[0], path / "mixing-weights.png", *what, shown[1])
            self_weight_curves(path, path / "self-weights.png", *what)
            group_picture(path, self.settings.groups_used, *what)

    def _statistics(self, rows: Sequence[Row]) -> dict[str, list[dict[str, float | int | str]]]:
        """Of the last round, and of the one that validation chooses."""
        chosen = selected(rows, self._validated, self._headline, self._measured)
        return {"final": final(rows, self._measured), "selected": chosen}

    def _summary(self, rows: Sequence[Row]) -> dict[str, object]:
        now = time.perf_counter()
        rounds = [waited(record) for record in self._records if record.kind == "train"]
        profiles = self._strategy.setup.roster.profiles if self._strategy else {}
        return {
            "strategy": self.settings.strategy,
            "dataset": self.settings.dataset,
            "model": self._model or self.settings.model,
            "seed": self.settings.seed,
            "num-clients": len(profiles),
            "class-names": names_of(profiles.values()),
            "num-rounds": len(rounds),
            "resumed-from": list(self.resumed),
            "failures": sum(len(record.failures) for record in self._records),
            "selection-metric": self._headline.name,
            **self._statistics(rows),
            "seconds": {
                "start-up": (self._ready or now) - self.began,
                "per-round": sum(rounds) / len(rounds) if rounds else None,
                "total": now - self.began,
            },
            "bytes": traffic(self._records),
            **self.more,
        }
