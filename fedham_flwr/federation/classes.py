"""What a method that is for classes refuses before the first round."""

from __future__ import annotations

from fedham_flwr.core.errors import UserError
from fedham_flwr.federation.contract import Setup


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
