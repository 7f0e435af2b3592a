"""FedAGHN's client half; see algorithms/fedaghn.py."""

from typing import final

from fedham_flwr.federation.client import RoundClient


@final
class FedAGHNClient(RoundClient):
    """R3, R4: train from the mixture; keep the running statistics and send the rest."""
