"""AMN's client half; see algorithms/amn.py."""

from typing import final

from fedham_flwr.federation.client import RoundClient


@final
class AMNClient(RoundClient):
    """R3, R4: train from the hybrid model; keep the running statistics and send the rest."""
