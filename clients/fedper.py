"""FedPer's client half; see algorithms/fedper.py."""

from collections.abc import Sequence
from typing import final

from clients.base import RoundClient
from fedham_flwr.algorithms import fedper


@final
class FedPerClient(RoundClient):
    """R2, R3: train base and head together, keep the head, send the base."""

    def personal_groups(self) -> Sequence[str]:
        """The last layer groups."""
        return fedper.personal_groups(self.job.trainer.manifest.group_names, self.settings.fedper.personal_layers)
