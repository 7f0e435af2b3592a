"""FedRep's server half; see algorithms/fedrep.py."""

from typing import final

from strategies.averaging import AveragingStrategy


@final
class FedRepStrategy(AveragingStrategy):
    """R1, R5: the mean of the clients' representations; their heads are never seen here."""
