"""FedALA's server half; see algorithms/fedala.py."""

from typing import final

from strategies.averaging import AveragingStrategy


@final
class FedALAStrategy(AveragingStrategy):
    """R1, R5: one model for all, the mean of the clients'."""
