"""The server half of local training, which has nothing to share; see algorithms/local.py."""

from collections.abc import Sequence
from typing import final

from fedham_flwr.algorithms import local
from strategies.averaging import AveragingStrategy


@final
class LocalStrategy(AveragingStrategy):
    """R1: tell the clients to train; the tree of shared tensors is empty."""

    def personal_groups(self) -> Sequence[str]:
        """Everything is personal."""
        return local.personal_groups(self.manifest.group_names)
