"""Ditto's server half; see algorithms/ditto.py."""

from typing import final

from strategies.averaging import AveragingStrategy


@final
class DittoStrategy(AveragingStrategy):
    """R1, R5: the mean of the clients' copies of the global model; their private models are never seen here."""
