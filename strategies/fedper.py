"""FedPer's server half; see algorithms/fedper.py."""

from collections.abc import Sequence
from typing import final

from fedham_flwr.algorithms import fedper
from strategies.averaging import AveragingStrategy


@final
class FedPerStrategy(AveragingStrategy):
    """R1, R4: the mean of the clients' base layers; their heads are never seen here."""

    def personal_groups(self) -> Sequence[str]:
        """The last layer groups."""
        return fedper.personal_groups(self.manifest.group_names, self.settings.fedper.personal_layers)
