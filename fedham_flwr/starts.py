"""Where a run begins: an interrupted one goes on from its checkpoint, another starts from what was trained before."""

from __future__ import annotations

import logging
import secrets
from collections.abc import Sequence
from pathlib import Path

from fedham_flwr.core.errors import UserError
from fedham_flwr.core.imports import section_of
from fedham_flwr.data.clients import said_of
from fedham_flwr.federation.contract import HasPersonalStage, Task
from fedham_flwr.federation.messages import Profile
from fedham_flwr.federation.roster import order
from fedham_flwr.federation.rounds import RoundStrategy
from fedham_flwr.reporting import terminal as report
from fedham_flwr.reporting.run_directory import RunDirectory
from fedham_flwr.resume.changed_data import check, pin_of_all
from fedham_flwr.resume.checkpoints import CLIENTS, Checkpoint, read_state, restore_clients
from fedham_flwr.resume.otherwise import dealt_otherwise, headed_otherwise
from fedham_flwr.resume.warm_start import read_start
from fedham_flwr.run_settings import Settings
from fedham_flwr.settings import flatten

log = logging.getLogger("fedham_flwr")


def directory_of(settings: Settings, old: Path | None) -> RunDirectory:
    """A new directory for a run, or that of the run that it continues.

    Args:
        settings: the run's.
        old: the directory that it goes on in.

    Raises:
        UserError: it cannot be made.
    """
    if old:
        return RunDirectory(old)
    return RunDirectory.create(settings.results_dir, section_of(settings.strategy), settings.seed, flatten(settings))


def go_on(
    strategy: RoundStrategy,
    checkpoint: Checkpoint,
    folder: Path,
    network: str,
    directory: RunDirectory,
    simulated: bool,
) -> None:
    """Let a run that was interrupted continue from a checkpoint: the server, a simulation's clients, and the results.

    Args:
        strategy: gets the state.
        checkpoint: where the run was.
        folder: the checkpoint's.
        network: name of the network.
        directory: the run's.
        simulated: whether the clients' personal states are in the checkpoint.

    Raises:
        UserError: these are other clients, other data that are not accepted, or another network.
    """
    roster, settings = strategy.setup.roster, strategy.settings
    now, then = order(roster.nodes), directory.read_clients()
    present, used = [roster.profiles[client] for client in now], settings.partitioner_used
    accept = settings.changed_data == "accept"
    other = check(directory.path, strategy.setup.task.data, used, accept, then, present)
    if simulated and now != checkpoint.clients and not other:
        raise UserError(
            f"resume={directory.path}: the run had {len(checkpoint.clients)} clients, and there are {len(now)} now: a "
            f"simulation is continued with as many (--num-supernodes {len(checkpoint.clients)})"
        )
    try:
        strategy.load_state_dict(read_state(folder))
    except ValueError as error:
        raise UserError(
            f"resume={directory.path}: {folder.name} does not fit the {network} of this run: {error}"
        ) from error
    if simulated:
        restore_clients(folder, Path(strategy.setup.task.keep))
    directory.rewind(checkpoint.exchanges)
    directory.write_settings(flatten(strategy.settings))
    report.say(f"continued after round {checkpoint.round}, from {folder}")


def data_of(settings: Settings, profiles: Sequence[Profile]) -> str:
    """The `pin` of the data of a simulation, of which is said who and what was left out; empty on real nodes.

    Args:
        settings: the run's.
        profiles: of the clients.

    Raises:
        UserError: the clients have opened different data.
    """
    pin = pin_of_all(profiles)
    for note in said_of(settings.data(), pin)[0] if pin else ():
        log.warning("%s", note)
    return pin


def start_from(settings: Settings, strategy: RoundStrategy, network: str) -> None:
    """Let a run begin with what an earlier one has trained, and say which it was.

    Args:
        settings: the run's, with `resume`.
        strategy: it gets the models.
        network: name of the network, `auto` resolved.

    Raises:
        UserError: there is nothing, or it does not fit.
    """
    if not isinstance(strategy, HasPersonalStage):
        raise UserError(f'resume="{settings.resume}": strategy={settings.strategy} starts from nothing else')
    clients = order(strategy.setup.roster.nodes)
    frozen = strategy.setup.method.frozen_head
    only = section_of(settings.strategy) if frozen else ""
    start = read_start(settings.resume, strategy.manifest, strategy.split.shared, network, clients, only)
    strategy.start_from(start.common, start.own)
    report.say(f"start: {start.source}")
    if differs := dealt_otherwise(settings.resume, flatten(settings)):
        log.warning(
            "the start was trained on data dealt with %s, not as in this run: what a client tests on now, it or "
            "another may have trained on then",
            ", ".join(differs),
        )
    if frozen and (differs := headed_otherwise(settings.resume, flatten(settings))):
        log.warning(
            "the start was trained with %s, and so under another head than the first one of this run: wanted a %s run "
            "with seed=%s",
            ", ".join(differs),
            settings.strategy,
            settings.seed,
        )


def task_of(
    settings: Settings,
    shape: tuple[int, ...],
    classes: int,
    profiles: Sequence[Profile],
    run: Path,
    saved: tuple[Checkpoint, Path] | None,
    pin: str = "",
) -> Task:
    """What all clients are told; those of a simulation share the file system, real ones keep what is theirs.

    Args:
        settings: the run's.
        shape: of one sample.
        classes: outputs of the network.
        profiles: of the clients.
        run: the run's directory.
        saved: a checkpoint that the run goes on from, and its folder.
        pin: of the data of a simulation; or the categories that the sites have agreed upon.
    """
    training = saved[0].training if saved else f"{run.parent.name}-{run.name}-{secrets.token_hex(4)}"
    if not any(profile.partitions for profile in profiles):
        return Task(shape, classes, training=training, data=pin)
    keep = run / CLIENTS
    if not (settings.checkpoint_every or saved):
        return Task(shape, classes, str(run / "model"), training, data=pin)
    keep.mkdir(mode=0o700, exist_ok=True)
    return Task(shape, classes, str(run / "model"), training, str(keep), pin)
