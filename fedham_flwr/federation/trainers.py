"""What trains a network here: kept from message to message, and from run to run as long as it is the same."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import TYPE_CHECKING

from fedham_flwr import models
from fedham_flwr.core.devices import resolve_device
from fedham_flwr.core.files import Stamp
from fedham_flwr.models.grouping import manifest_of
from fedham_flwr.models.weight_files import stamps_of
from fedham_flwr.run_settings import Settings
from fedham_flwr.training.trainer import Trainer

if TYPE_CHECKING:
    from fedham_flwr.training.engine.engine import Engine


def trainer_of(settings: Settings, shape: tuple[int, ...], classes: int) -> tuple[Trainer, Callable[[], Engine]]:
    """A worker's trainer, and what trains its network for many clients at once; the last ones are kept.

    Args:
        settings: of the clients, whose network is `model`.
        shape: of a sample.
        classes: outputs of the network.

    Raises:
        UserError: the network cannot be built.
    """
    networks = settings.networks()
    files = stamps_of(models.resolve(settings.model, shape), networks)
    return _made(settings.model, shape, classes, networks, files, settings.device, settings.precision, settings.seed)


@lru_cache(maxsize=1)
def _made(
    name: str,
    shape: tuple[int, ...],
    classes: int,
    networks: models.NetworkSettings,
    _files: tuple[Stamp, ...],
    device: str,
    precision: str,
    seed: int,
) -> tuple[Trainer, Callable[[], Engine]]:
    model = models.build(name, shape, classes, seed, networks)
    manifest = manifest_of(model, models.trial_batches(shape))
    trainer = Trainer(model, resolve_device(device), precision, manifest)

    @lru_cache(maxsize=1)
    def engine() -> Engine:
        from fedham_flwr.training.engine.engine import Engine

        return Engine(trainer, model, [batch.to(trainer.device) for batch in models.trial_batches(shape)])

    return trainer, engine
