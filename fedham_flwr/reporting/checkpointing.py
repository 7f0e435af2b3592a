"""Writes a checkpoint of a run, or says why it cannot."""

from __future__ import annotations

import logging
from pathlib import Path

from fedham_flwr.core.errors import reason
from fedham_flwr.federation.answers import state_of
from fedham_flwr.federation.roster import order
from fedham_flwr.federation.rounds import RoundStrategy
from fedham_flwr.reporting.run_directory import RunDirectory
from fedham_flwr.resume import checkpoints
from fedham_flwr.resume.checkpoints import Checkpoint

log = logging.getLogger("fedham_flwr")


def keep_checkpoint(
    directory: RunDirectory, strategy: RoundStrategy, model: str, exchanges: int, resumed: tuple[int, ...]
) -> None:
    """Write a checkpoint; a disk that is full is said and does not end the run, which has the one before.

    Args:
        directory: the run's.
        strategy: whose state is saved.
        model: name of the network.
        exchanges: how many there have been.
        resumed: the rounds that the run has been continued from.
    """
    progress, task = strategy.progress, strategy.setup.task
    here = Checkpoint(
        round=progress.done,
        training=task.training,
        strategy=strategy.settings.strategy,
        model=model,
        clients=order(strategy.setup.roster.profiles),
        trained=order(progress.trained),
        stateless=order(progress.stateless),
        novel=progress.novel,
        exchanges=exchanges,
        resumed=resumed,
    )
    try:
        directory.sync()
        checkpoints.save(directory.path, here, state_of(strategy), Path(task.keep) if task.keep else None)
    except OSError as error:
        why = "the checkpoint of round %s cannot be written (%s); the one before it stays"
        log.warning(why, here.round, reason(error))
