"""Tells the callbacks of a run what becomes of it, round by round, and takes their wish to end it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any, NamedTuple

from fedham_flwr.callbacks.chosen import Named
from fedham_flwr.callbacks.protocol import RoundReport, RunEnd, RunStart, Statistic
from fedham_flwr.core.errors import CallbackError, UserError, described
from fedham_flwr.core.records import RoundRecord, Row
from fedham_flwr.federation.rounds import RoundStrategy
from fedham_flwr.reporting.run_directory import RunDirectory, read_rows, to_rows
from fedham_flwr.reporting.summary import score, waited
from fedham_flwr.reporting.validation import validation_values
from fedham_flwr.settings import flatten
from fedham_flwr.training.metrics import ACCURACY, METRICS, Metric

log = logging.getLogger("fedham_flwr")


class Stop(NamedTuple):
    """A callback's wish to end the run: whose, and why."""

    by: str
    why: str


@dataclass
class Followers:
    """The callbacks of one run.

    Attributes:
        callbacks: in the order in which they are told.
        stop: the first wish to end the run; None without one.
    """

    callbacks: tuple[Named, ...] = ()
    stop: Stop | None = None
    _told: list[Named] = field(default_factory=list)
    _strategy: RoundStrategy | None = None
    _measured: tuple[Metric, ...] = (ACCURACY,)
    _headline: Metric = ACCURACY
    _records: list[RoundRecord] = field(default_factory=list)
    _rows: list[Row] = field(default_factory=list)

    def begin(
        self,
        directory: RunDirectory,
        strategy: RoundStrategy,
        network: str,
        measured: tuple[Metric, ...],
        headline: Metric,
    ) -> None:
        """Say that the first round is about to begin; of a run that is continued, tell what is behind it again.

        Args:
            directory: the run's.
            strategy: the run's.
            network: its name.
            measured: the run's metrics, beside the loss.
            headline: the one by which rounds are compared.

        Raises:
            UserError: a callback cannot do its work in this run.
            CallbackError: one failed.
        """
        if not self.callbacks:
            return
        self._strategy, self._measured, self._headline = strategy, measured, headline
        run = self._start(directory, strategy, network)
        try:
            for named in self.callbacks:
                _call(named, named.callback.on_start, run)
                self._told.append(named)
            self._tell_again(directory)
        except (UserError, CallbackError) as error:
            self.end({}, error)
            raise

    def take(self, record: RoundRecord, rows: Sequence[Row]) -> None:
        """Keep what an exchange brought until its round is done."""
        if self._told:
            self._records.append(record)
            self._rows += rows

    def round_done(self) -> Stop | None:
        """Tell of the round; the wish to end the run.

        Raises:
            UserError: a callback answered something else than a text, or says that it cannot go on.
            CallbackError: one failed.
        """
        self._tell()
        return self.stop

    def end(self, summary: dict[str, Any], error: BaseException | None) -> None:
        """Tell of the closing evaluation and of the end.

        Args:
            summary: what `summary.json` says.
            error: what ended the run before its time; what fails after that is warned of.

        Raises:
            UserError, CallbackError: as `round_done`, without an error before it.
        """
        failed: Exception | None = None
        text = None if error is None else _said(error)
        try:
            if error is None:
                self._tell(closing=True)
        except (UserError, CallbackError) as its:
            failed = its
        for named in self._told:
            try:
                _call(named, named.callback.on_end, RunEnd(summary, text))
            except (UserError, CallbackError) as its:
                failed = failed or its
        self._told = []
        if failed and error is None:
            raise failed
        if failed:
            log.warning("at the end of the run also: %s", _said(failed))

    # ---- reports ---------------------------------------------------------------------------------------------------

    def _start(self, directory: RunDirectory, strategy: RoundStrategy, network: str) -> RunStart:
        measured = (*self._measured, METRICS["loss"])
        return RunStart(
            directory=directory.path,
            settings=flatten(strategy.settings),
            strategy=strategy.settings.strategy,
            network=network,
            clients=len(strategy.setup.roster.profiles),
            rounds=strategy.rounds,
            done=strategy.progress.done,
            metric=self._headline.name,
            metrics={metric.name: metric.higher for metric in measured},
            validated=len(_validated(strategy)),
        )

    def _tell_again(self, directory: RunDirectory) -> None:
        records = directory.read_rounds()
        rows: dict[int, list[Row]] = {}
        for row in to_rows(read_rows(directory.path)) if records else ():
            rows.setdefault(row.round, []).append(row)
        for number, some in groupby(records, key=lambda record: record.round):
            self._records, self._rows = list(some), rows.get(number, [])
            self._tell(again=True)

    def _tell(self, closing: bool = False, again: bool = False) -> None:
        """Tell all callbacks of what has been taken, also if one of them fails or is interrupted."""
        if not self._records:
            return
        report = self._report(closing, again)
        self._records, self._rows = [], []
        failed: BaseException | None = None
        for named in self._told:
            try:
                answer = _call(named, named.callback.on_round, report)
                if answer is not None and not isinstance(answer, str):
                    raise UserError(
                        f"the callback {named.name} answered {answer!r} after round {report.round}: wanted why the run "
                        "should end, a text, or None"
                    )
                if answer and not closing and self.stop is None:
                    self.stop = Stop(named.name, answer)
            except (UserError, CallbackError, KeyboardInterrupt) as error:
                # The round is done, and a run that goes on after it does not tell a tracker of it a second time.
                failed = failed or error
        if failed:
            raise failed

    def _report(self, closing: bool, again: bool) -> RoundReport:
        assert self._strategy is not None
        records, number = self._records, min(record.round for record in self._records)
        rows = tuple(sorted((row for row in self._rows if row.round == number), key=lambda row: row[:6]))
        phase = self._strategy.settings.phase(closing)
        validation = validation_values(rows, _validated(self._strategy), phase)
        return RoundReport(
            round=number,
            kinds=tuple(dict.fromkeys(record.kind for record in records)),
            statistics=tuple(map(_statistic, score(rows, self._measured))),
            rows=rows,
            validation=validation,
            seconds=sum(map(waited, records)),
            bytes_up=sum(record.bytes_up for record in records),
            bytes_down=sum(record.bytes_down for record in records),
            failures=tuple(failure for record in records for failure in record.failures),
            closing=closing,
            again=again,
            value=validation.get(self._headline.name),
        )


def _call(named: Named, question: Callable[[Any], Any], given: object) -> Any:
    """What a callback answers."""
    try:
        return question(given)
    except UserError:
        raise
    except Exception as error:  # whatever the user's own code raises
        raise CallbackError(named.name) from error


def _said(error: BaseException) -> str:
    """An error as `summary.json` has it; of one that a callback raised whose it was."""
    if isinstance(error, CallbackError):
        return f"the callback {error} failed: {described(error.__cause__ or error)}"
    return f"{type(error).__name__}: {error}"


def _validated(strategy: RoundStrategy) -> set[str]:
    """The clients that have validation samples, without novel ones."""
    profiles: Iterable[tuple[str, Any]] = strategy.setup.roster.profiles.items()
    return {one for one, its in profiles if its.counts.get("validation") and one not in strategy.progress.novel}


def _statistic(entry: dict[str, Any]) -> Statistic:
    return Statistic(**{name: entry[name.replace("_", "-")] for name in Statistic._fields})
