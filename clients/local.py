"""The client half of local training; see algorithms/local.py."""

from collections.abc import Sequence
from typing import final

from clients.base import RoundClient
from fedham_flwr.algorithms import local


@final
class LocalClient(RoundClient):
    """R2, R3: train the own model and keep all of it."""

    def personal_groups(self) -> Sequence[str]:
        """Everything stays here."""
        return local.personal_groups(self.job.trainer.manifest.group_names)
