"""Settings -> model -> strategy -> rounds -> results: the app that runs on the server."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from fedham_flwr import ends, networks
from fedham_flwr.callbacks.chosen import chosen
from fedham_flwr.callbacks.protocol import Callback
from fedham_flwr.core import parameters
from fedham_flwr.core.arrays import Storage
from fedham_flwr.core.devices import check_device
from fedham_flwr.core.errors import CallbackError, UserError
from fedham_flwr.core.imports import is_path
from fedham_flwr.core.parameters import Manifest, Params
from fedham_flwr.federation.agreement import agree
from fedham_flwr.federation.categories import discovered, search
from fedham_flwr.federation.contract import RunProgress, Setup, Task
from fedham_flwr.federation.cross_server import cross_evaluate
from fedham_flwr.federation.direct import HandsOver
from fedham_flwr.federation.progress import Recorder
from fedham_flwr.federation.roster import Roster, order
from fedham_flwr.federation.rounds import RoundStrategy
from fedham_flwr.idle import NOTHING, Asked, changed, check_idle
from fedham_flwr.reasons import Facts
from fedham_flwr.registry import method
from fedham_flwr.reporting import cross_sites
from fedham_flwr.reporting import terminal as report
from fedham_flwr.reporting.followers import Followers
from fedham_flwr.reporting.journal import Journal
from fedham_flwr.reporting.run_directory import RunDirectory
from fedham_flwr.resume.changed_data import Watch, remember
from fedham_flwr.resume.checkpoints import Checkpoint, newest
from fedham_flwr.resume.continuing import continued
from fedham_flwr.resume.writer import only_writer
from fedham_flwr.run_settings import Settings
from fedham_flwr.settings import Value, defaults, flatten, parse
from fedham_flwr.starts import data_of, directory_of, go_on, start_from, task_of
from fedham_flwr.training import metric_choice
from fedham_flwr.trials import check_measured, server_half

log = logging.getLogger("fedham_flwr")


def make_server_app(
    given: Mapping[str, Value] | None = None,
    left: Callable[[Path], object] | None = None,
    asked: Collection[str] | None = None,
    callbacks: Sequence[Callback] = (),
) -> ServerApp:
    """The app, with settings given here or, by default, taken from the run's config.

    Args:
        given: settings by key, as in pyproject.toml.
        left: told the run's directory, once there is one.
        asked: keys of the settings that somebody chose for this run, of which those without effect are said; by
            default all whose values are not the defaults.
        callbacks: told of the run, beside those that the settings name.
    """
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        raw = context.run_config if given is None else given
        try:
            settings = parse(raw)
            # The name, since the class is in another place from one version of Flower to the next.
            if type(grid).__name__ == "InMemoryGrid":  # of `flwr run`, with the clients on this machine
                check_device(settings.device, precision=settings.precision)
            run(grid, settings, left, Asked(changed(raw)) if asked is None else Asked(asked, here=True), callbacks)
        except UserError as error:
            if given is None:  # a process of Flower's own, which is about to print the stack and end
                sys.tracebacklimit = 0
                log.error("%s", error)
            raise

    return app


def run(
    grid: Grid,
    settings: Settings,
    left: Callable[[Path], object] | None = None,
    asked: Asked = NOTHING,
    callbacks: Sequence[Callback] = (),
) -> None:
    """A whole run: find the clients, train, evaluate, and write and print what came of it.

    Whatever ends the run early, the results so far and the server's state are written first; of a run that ends before
    its first round nothing is left.

    Args:
        grid: the way to the clients.
        settings: the run's.
        left: told the run's directory.
        asked: the settings that somebody chose for this run.
        callbacks: given beside those of the settings.

    Raises:
        UserError: a callback is none or lacks a package, another run writes to the directory, the results cannot be
            written, the clients cannot be reached or do not fit together, or too few of them gave a good reply.
    """
    began = time.perf_counter()
    followers = Followers(chosen(settings, callbacks))
    old, parents = continued(settings), ends.missing_parents(settings)
    directory: RunDirectory | None = None
    journal: Journal | None = None
    try:
        directory = directory_of(settings, old)
        with only_writer(directory.path):
            saved = newest(old) if old else None
            if old and saved:
                settings = settings.model_copy(update={"resume": "", "results_dir": str(old.parent.parent)})
            if left is not None:
                left(directory.path)
            resumed = (*saved[0].resumed, saved[0].round) if saved else ()
            journal = Journal(directory, settings, began, resumed, followers)
            _run(grid, journal, saved, asked)
    except BaseException:
        if not old and not (journal and journal.begun):
            ends.remove(directory.path if directory else None, parents)
        raise


def _run(grid: Grid, journal: Journal, saved: tuple[Checkpoint, Path] | None, asked: Asked) -> None:
    """A whole run in a directory that nobody else writes to."""
    settings = journal.settings
    try:
        report.settings_table(flatten(settings), defaults())
        strategy = prepare(grid, settings, journal, saved, asked)
        with journal:
            strategy.run(grid)
        if settings.cross_evaluation:
            cross_sites.keep(cross_evaluate(grid, strategy), journal)
        if isinstance(grid, HandsOver) and (engine := grid.engine()):
            journal.more["engine"] = engine
            report.say(report.engine_line(engine))
    except BaseException as error:
        told = ends.explained(error, settings.strategy, journal.directory.path)
        if journal.begun:
            ends.finish_early(journal, told)
        if told is error:
            raise
        raise told from error
    try:
        journal.finish()
    except (UserError, CallbackError) as error:
        raise ends.explained(error, settings.strategy, journal.directory.path) from error


def prepare(
    grid: Grid,
    settings: Settings,
    journal: Journal,
    saved: tuple[Checkpoint, Path] | None = None,
    asked: Asked = NOTHING,
) -> RoundStrategy:
    """Wait for the clients, and build the model that fits their data and the strategy that serves them.

    Args:
        grid: the way to the clients.
        settings: the run's.
        journal: the run's.
        saved: a checkpoint that the run goes on from, and its folder.
        asked: as for `run`.

    Raises:
        UserError: too few clients came, their samples differ in shape, the model does not fit them or what it is to
            start from, or a user's optimiser or loss does not fit the model.
    """
    roster, told = discovered(grid, settings, journal.directory.path)
    networks.leave_out(settings, roster, lambda: search(roster, grid, settings))
    profiles = [roster.profiles[client] for client in order(roster.nodes)]
    shape, classes = agree(profiles)
    pin = data_of(settings, profiles)
    measured = settings.measured(profiles[0].target, classes)
    metric_choice.check(measured, profiles[0].target, classes)
    journal.measures(measured)
    built = networks.build(settings, profiles, shape, classes)
    check_measured(settings, profiles)
    common, network = networks.largest(built), ", ".join(each.name for each in built)
    dealt = bool(profiles[0].partitions) and not is_path(settings.dataset)
    check_idle(asked, Facts(settings, network, shape, profiles[0].target, dealt, common.manifest))
    for line in networks.lines(built, shape):
        report.say(line)
    if isinstance(grid, HandsOver):
        report.say(report.workers_line(grid.plan(), common.size))
    strategy = build_strategy(
        settings,
        common.manifest,
        parameters.read(common.model, common.manifest.names()),
        task_of(settings, shape, classes, profiles, journal.directory.path, saved, told or pin),
        roster,
        Watch(journal, settings.data(), pin),
        saved[0].progress() if saved else None,
        journal.directory.path,
    )
    if saved:
        networks.check_unchanged(journal.directory.path, journal.directory.read_clients(), profiles)
        go_on(strategy, *saved, network, journal.directory, simulated=bool(profiles[0].partitions))
    remember(journal.directory.path, pin, len(profiles), settings.data())
    report.data_table(journal.write_clients(strategy))
    report.say(networks.describe(strategy, built))
    if settings.resume:
        start_from(settings, strategy, network)
    journal.started(strategy, network)
    return strategy


def build_strategy(
    settings: Settings,
    manifest: Manifest,
    initial: Params,
    task: Task,
    roster: Roster | None = None,
    recorder: Recorder | None = None,
    progress: RunProgress | None = None,
    folder: Path | None = None,
) -> RoundStrategy:
    """The server half of the method that the settings name.

    Args:
        settings: the run's.
        manifest: the model's.
        initial: the first tensors of every layer group.
        task: what the clients are told.
        roster: the clients; by default they are found by a query.
        recorder: what is told of each exchange; by default nobody.
        progress: how far the run is; by default at its start.
        folder: where what does not fit into memory may lie; by default nowhere.

    Raises:
        UserError: the method cannot do with this model or these settings.
    """
    declared = method(settings.strategy)
    storage = Storage(folder, settings.bank_memory * 1e9)
    setup = Setup(
        settings, declared, manifest, initial, task, roster or Roster(), recorder, progress or RunProgress(), storage
    )
    return server_half(declared)(setup)


app = make_server_app()
