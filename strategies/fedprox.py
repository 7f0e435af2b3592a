"""FedProx's server half; see algorithms/fedprox.py."""

from typing import final

from strategies.averaging import AveragingStrategy


@final
class FedProxStrategy(AveragingStrategy):
    """R1, R4: one model for all, the mean of the clients'."""
