"""What is tried before the first round, so that a mistake is said once and not by every client."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import nn

from fedham_flwr import models
from fedham_flwr.core.devices import resolve_device
from fedham_flwr.core.errors import UserError
from fedham_flwr.core.imports import is_path
from fedham_flwr.core.methods import Method
from fedham_flwr.core.shapes import dimensions, sample_kind
from fedham_flwr.data.batches import Kind
from fedham_flwr.federation.messages import Profile
from fedham_flwr.federation.rounds import RoundStrategy
from fedham_flwr.models import sizes
from fedham_flwr.registry import half
from fedham_flwr.run_settings import Settings
from fedham_flwr.training import augment, losses, optim

log = logging.getLogger("fedham_flwr")

EXAMPLES: Mapping[str, Callable[[int], torch.Tensor]] = {
    "class": lambda _: torch.zeros(2, dtype=torch.int64),
    "next-token": lambda _: torch.zeros(2, dtype=torch.int64),
    "multi-label": lambda outputs: torch.zeros(2, outputs, dtype=torch.uint8),
    "value": lambda outputs: torch.zeros(2, outputs),
}
"""Two targets of each kind, on which a loss is tried."""


def try_training(settings: Settings, profile: Profile, outputs: int, model: nn.Module) -> None:
    """Try a user's optimiser, augmentation and loss.

    Args:
        settings: the run's.
        profile: of any client.
        outputs: of the network.
        model: the network; it does not change.

    Raises:
        UserError: one of them does not fit the model or the data.
    """
    training = settings.local_training(1)
    optim.check(list(model.parameters()), training)
    augment.check(training, _kind(settings, profile), dimensions(profile.shape))
    losses.check(training.loss, torch.zeros(2, outputs), EXAMPLES[profile.target](outputs))


def check_measured(settings: Settings, profiles: Sequence[Profile]) -> None:
    """Say where nothing will be measured, since no client has validation samples and test samples are not scored.

    Args:
        settings: the run's.
        profiles: of the clients.
    """
    if settings.score_test == "always" or any(profile.counts.get("validation") for profile in profiles):
        return
    when = "before the closing evaluation" if settings.score_test == "closing" else "of any model"
    log.warning(
        'nothing is measured %s, since no client has validation samples and score-test="%s" leaves out the others: '
        "wanted validation-fraction above 0, or score-test=\"always\"", when, settings.score_test,
    )  # fmt: skip


def server_half(declared: Method) -> type[RoundStrategy]:
    """The class of a method's server half.

    Raises:
        UserError: it is none, or lacks a function.
    """
    made = half(declared.strategy)
    if not (isinstance(made, type) and issubclass(made, RoundStrategy)):
        name = getattr(made, "__name__", type(made).__name__)
        raise UserError(
            f"the server half of {declared.name} is {name}, and wanted is a RoundStrategy: a class of yours"
        )
    if missing := sorted(made.__abstractmethods__):
        raise UserError(f"{made.__name__}, the server half of {declared.name}, lacks {', '.join(missing)}")
    return made


def _kind(settings: Settings, profile: Profile) -> Kind:
    """The kind of the clients' data, as far as it can be told from here: a user's own may be images or arrays."""
    kind = sample_kind(profile.shape)
    if profile.target == "next-token" or kind in ("image", "series", "tokens"):
        return "text" if profile.target == "next-token" else kind
    return "array" if is_path(settings.dataset) else "table"


def check_size(settings: Settings, profile: Profile, outputs: int) -> None:
    """Refuse inputs that the model is not for, and images that no step of training has memory for.

    Of large images it is said that they can be resized.

    Args:
        settings: the run's.
        profile: of any client; on a machine of its own it may have more memory, and is not refused.
        outputs: of the network.

    Raises:
        UserError: the clients of a simulation have not enough memory, or the model is for other inputs.
    """
    shape = profile.shape
    if len(shape) == 1 and profile.target != "next-token" and not is_path(settings.model):
        raise UserError(
            f'model="{settings.model}" is not for inputs of {shape[0]} numbers: wanted a model of your own, '
            'model="package.module:Object"'
        )
    if len(shape) != 3 or max(shape[1:]) <= sizes.LARGE:
        return
    needed = sizes.step_bytes(settings.model, shape, outputs, settings.batch_size, settings.networks())
    there = sizes.memory() if resolve_device(settings.device).type == "cpu" else 0
    what = (
        f"the images have {shape[2]} x {shape[1]} pixels, and a step of {settings.batch_size} of them takes about "
        f"{needed / 1e9:,.1f} GB of memory with {models.resolve(settings.model, shape)}"
    )
    if there and needed > there and profile.partitions:
        raise UserError(
            f"{what}, of which this machine has {there / 1e9:,.1f}: set image-size, for example 224, or a smaller "
            "batch-size"
        )
    log.warning("%s; image-size=224 would resize them", what)
