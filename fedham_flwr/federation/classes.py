"""What a method that is for classes refuses before the first round."""

from __future__ import annotations

import logging

from fedham_flwr.core.errors import UserError
from fedham_flwr.federation.contract import Setup

log = logging.getLogger("fedham_flwr")


def target_of(setup: Setup) -> str:
    """What is learned, as `data.batches.Target` has it; classes where no client has said so."""
    return next((profile.target for profile in setup.roster.profiles.values()), "class")


def check_classes(setup: Setup, own_loss: bool = True) -> None:
    """Refuse what is learned where there are no classes, and settings of the loss where the method has its own.

    Args:
        setup: the run's.
        own_loss: the method has losses of its own.

    Raises:
        UserError: there are no classes, or the settings name another loss.
    """
    asks = f'strategy="{setup.settings.strategy}"'
    if (target := target_of(setup)) not in ("class", "next-token"):
        raise UserError(f"{asks} is for classes, and the target is {target}: wanted another method")
    if own_loss:
        setup.settings.local_training(1).check_task_loss(asks)


def warn_of_few(setup: Setup, least: int) -> None:
    """Say before the first round that nobody will send the mean of a class, since nobody has so many samples of one.

    Args:
        setup: the run's.
        least: `min-samples` of the method.
    """
    most = max((max(profile.labels, default=0) for profile in setup.roster.profiles.values()), default=least)
    if most < least:
        strategy = setup.settings.strategy
        log.warning(
            "%s.min-samples=%d: the most that a client has of a class are %d training samples, so that no class mean "
            "is sent, and clients learn nothing of each other",
            strategy, least, most,
        )  # fmt: skip
