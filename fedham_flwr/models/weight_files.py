"""Which files a network takes its weights from, so that what is kept of one is not taken for that of another."""

from __future__ import annotations

from pathlib import Path

from fedham_flwr.core.files import Stamp, stamps
from fedham_flwr.models.hub_folder import HubSettings
from fedham_flwr.models.torchvision_models import TorchvisionSettings


def stamps_of(own: object) -> tuple[Stamp, ...]:
    """What tells the files of a network from others under the same path; none for a network without files.

    Args:
        own: the network's settings.
    """
    if isinstance(own, HubSettings) and own.folder:
        return stamps(sorted(Path(own.folder).expanduser().glob("*")))
    if isinstance(own, TorchvisionSettings) and own.weights:
        return stamps([Path(own.weights).expanduser()])
    return ()
