"""FedProx's server half, which is FedAvg's; see algorithms/fedprox.py."""

from collections.abc import Sequence
from typing import final

from strategies.averaging import AveragingStrategy


@final
class FedProxStrategy(AveragingStrategy):
    """R1, R4: one model for all, the mean of the clients'."""

    def personal_groups(self) -> Sequence[str]:
        """Nothing is personal."""
        return ()
