"""FedPer's server half; see algorithms/fedper.py."""

from typing import final

from strategies.averaging import AveragingStrategy


@final
class FedPerStrategy(AveragingStrategy):
    """R1, R4: the mean of the clients' base layers; their heads are never seen here."""
