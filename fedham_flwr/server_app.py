"""Settings -> model -> strategy -> rounds -> results: the app that runs on the server."""

from __future__ import annotations

import logging
import secrets
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from fedham_flwr import models
from fedham_flwr.core import parameters
from fedham_flwr.core.arrays import Storage
from fedham_flwr.core.errors import UserError
from fedham_flwr.core.imports import is_path, section_of
from fedham_flwr.core.parameters import Manifest, Params
from fedham_flwr.data.batches import Kind
from fedham_flwr.federation.contract import RunProgress, Setup, Task
from fedham_flwr.federation.direct import HandsOver
from fedham_flwr.federation.messages import Profile
from fedham_flwr.federation.progress import Recorder
from fedham_flwr.federation.roster import Roster, agree, order
from fedham_flwr.federation.rounds import RoundStrategy
from fedham_flwr.models.grouping import manifest_of
from fedham_flwr.registry import half, method
from fedham_flwr.reporting import terminal as report
from fedham_flwr.reporting.journal import Journal
from fedham_flwr.reporting.run_directory import RunDirectory
from fedham_flwr.resume.checkpoints import CLIENTS, Checkpoint, newest
from fedham_flwr.resume.continuing import continued
from fedham_flwr.run_settings import Settings
from fedham_flwr.settings import Value, defaults, flatten, parse
from fedham_flwr.starts import go_on, start_from
from fedham_flwr.training import augment, losses, metric_choice, optim

log = logging.getLogger("fedham_flwr")

EXAMPLES: Mapping[str, Callable[[int], torch.Tensor]] = {
    "class": lambda _: torch.zeros(2, dtype=torch.int64),
    "next-token": lambda _: torch.zeros(2, dtype=torch.int64),
    "multi-label": lambda outputs: torch.zeros(2, outputs, dtype=torch.uint8),
    "value": lambda outputs: torch.zeros(2, outputs),
}
"""Two targets of each kind, on which a loss is tried before the first round."""


def make_server_app(
    given: Mapping[str, Value] | None = None, left: Callable[[Path], object] | None = None
) -> ServerApp:
    """The app, with settings given here or, by default, taken from the run's config.

    Args:
        given: settings by key, as in pyproject.toml.
        left: told the run's directory, once there is one.
    """
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        try:
            run(grid, parse(context.run_config if given is None else given), left)
        except UserError as error:
            if given is None:  # a process of Flower's own, which is about to print the stack and end
                sys.tracebacklimit = 0
                log.error("%s", error)
            raise

    return app


def run(grid: Grid, settings: Settings, left: Callable[[Path], object] | None = None) -> None:
    """A whole run: find the clients, train, evaluate, and write and print what came of it.

    Whatever ends the run early, the results so far and the server's state are written first.

    Args:
        grid: the way to the clients.
        settings: the run's.
        left: told the run's directory.

    Raises:
        UserError: the results cannot be written, the clients cannot be reached or do not fit together, or too few
            of them gave a good reply.
    """
    began = time.perf_counter()
    old = continued(settings)
    saved = newest(old) if old else None
    if old and saved:
        settings = settings.model_copy(update={"resume": "", "results_dir": str(old.parent.parent)})
        directory = RunDirectory(old)
    else:
        directory = RunDirectory.create(
            settings.results_dir, section_of(settings.strategy), settings.seed, flatten(settings)
        )
    if left is not None:
        left(directory.path)
    report.settings_table(flatten(settings), defaults())
    journal = Journal(directory, settings, began, (*saved[0].resumed, saved[0].round) if saved else ())
    try:
        strategy = prepare(grid, settings, journal, saved)
        with journal:
            strategy.run(grid)
        if isinstance(grid, HandsOver):
            journal.engine = grid.engine()
            report.say(engine_line(journal.engine))
    except BaseException as error:
        journal.finish(error)
        raise
    journal.finish()


def engine_line(told: Mapping[str, object]) -> str:
    """How the clients of a cohort were trained and scored, in a line."""
    alone = told.get("alone")
    apart = sum(alone.values()) if isinstance(alone, dict) else 0
    why = f" ({told['why-alone']})" if "why-alone" in told else ""
    return f"cohort  {told.get('together', 0):,} requests carried out together, {apart:,} one at a time{why}"


def prepare(
    grid: Grid, settings: Settings, journal: Journal, saved: tuple[Checkpoint, Path] | None = None
) -> RoundStrategy:
    """Wait for the clients, and build the model that fits their data and the strategy that serves them.

    Args:
        grid: the way to the clients.
        settings: the run's.
        journal: the run's.
        saved: a checkpoint that the run goes on from, and its folder.

    Raises:
        UserError: too few clients came, their samples differ in shape, the model does not fit them or what it is to
            start from, or a user's optimiser or loss does not fit the model.
    """
    roster = Roster()
    roster.discover(grid, settings.min_clients, settings.client_timeout, settings.round_timeout)
    profiles = [roster.profiles[client] for client in order(roster.nodes)]
    shape, classes = agree(profiles)
    measured = settings.measured(profiles[0].target, classes)
    metric_choice.check(measured, profiles[0].target, classes)
    journal.measures(measured)
    if len(shape) == 1 and profiles[0].target != "next-token" and not is_path(settings.model):
        raise UserError(
            f'model="{settings.model}" is not for inputs of {shape[0]} numbers: wanted a model of your own, '
            'model="package.module:Object"'
        )
    model = models.build(settings.model, shape, classes, settings.seed, settings.networks())
    training = settings.local_training(1)
    optim.check(list(model.parameters()), training)
    augment.check(training, _kind(settings, profiles[0].target, shape), shape)
    losses.check(training.loss, torch.zeros(2, classes), EXAMPLES[profiles[0].target](classes))
    manifest, network = manifest_of(model, models.trial_batches(shape)), models.resolve(settings.model, shape)
    report.say(f"model  {network}: {sum(param.numel() for param in model.parameters()):,} parameters")
    strategy = build_strategy(
        settings,
        manifest,
        parameters.read(model, manifest.names()),
        _task(settings, shape, classes, profiles, journal.directory.path, saved),
        roster,
        journal,
        saved[0].progress() if saved else None,
        journal.directory.path,
    )
    if saved:
        go_on(strategy, *saved, network, journal.directory, simulated=bool(profiles[0].partitions))
    report.data_table(journal.write_clients(strategy))
    report.say(strategy.describe())
    if settings.resume:
        start_from(settings, strategy, network)
    journal.started(strategy, network)
    return strategy


def _kind(settings: Settings, target: str, shape: tuple[int, ...]) -> Kind:
    """The kind of the clients' data, as far as it can be told from here: a user's own may be images or arrays."""
    if target == "next-token":
        return "text"
    if len(shape) == 3:
        return "image"
    return "array" if is_path(settings.dataset) else "table"


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
    strategy: RoundStrategy = half(declared.strategy)(setup)
    return strategy


def _task(
    settings: Settings,
    shape: tuple[int, ...],
    classes: int,
    profiles: Sequence[Profile],
    run: Path,
    saved: tuple[Checkpoint, Path] | None,
) -> Task:
    """What all clients are told; those of a simulation share the file system, real ones keep what is theirs."""
    training = saved[0].training if saved else f"{run.parent.name}-{run.name}-{secrets.token_hex(4)}"
    if not any(profile.partitions for profile in profiles):
        return Task(shape, classes, training=training)
    keep = run / CLIENTS
    if not (settings.checkpoint_every or saved):
        return Task(shape, classes, str(run / "model"), training)
    keep.mkdir(mode=0o700, exist_ok=True)
    return Task(shape, classes, str(run / "model"), training, str(keep))


app = make_server_app()
