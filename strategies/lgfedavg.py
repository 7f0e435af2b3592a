"""LG-FedAvg's server half; see algorithms/lgfedavg.py."""

from typing import final

from strategies.averaging import AveragingStrategy


@final
class LGFedAvgStrategy(AveragingStrategy):
    """R1, R4: the mean of the clients' last layers; their lower layers are never seen here."""
