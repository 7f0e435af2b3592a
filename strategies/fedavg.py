"""FedAvg's server half; see algorithms/fedavg.py."""

from typing import final

from strategies.averaging import AveragingStrategy


@final
class FedAvgStrategy(AveragingStrategy):
    """R1, R4: one model for all, the mean of the clients'."""
