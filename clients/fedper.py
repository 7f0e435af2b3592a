"""FedPer's client half; see algorithms/fedper.py."""

from typing import final

from fedham_flwr.federation.client import RoundClient


@final
class FedPerClient(RoundClient):
    """R2, R3: train base and head together, keep the head, send the base."""
