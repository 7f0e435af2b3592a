"""Which files a network takes its weights from, so that what is kept of one is not taken for that of another."""

from __future__ import annotations

from pathlib import Path

from fedham_flwr.core.files import Stamp, stamps
from fedham_flwr.models import NetworkSettings
from fedham_flwr.models.hub_folder import HubSettings
from fedham_flwr.models.torchvision_models import TorchvisionSettings


def stamps_of(name: str, networks: NetworkSettings) -> tuple[Stamp, ...]:
    """What tells the files of a network from others under the same paths; none for a network without files.

    Args:
        name: of the network, `auto` resolved.
        networks: the networks' settings.
    """
    files: list[str | Path] = []
    own = networks.section(name)
    if isinstance(own, HubSettings) and own.folder:
        files += sorted(Path(own.folder).expanduser().glob("*"))
    elif isinstance(own, TorchvisionSettings):
        files.append(own.weights)
    if networks.adapters is not None:
        files.append(networks.adapters.base)
    return stamps([Path(file).expanduser() for file in files if file])
