"""The client half of local training; see algorithms/local.py."""

from typing import final

from fedham_flwr.federation.client import RoundClient


@final
class LocalClient(RoundClient):
    """R2, R3: train the own model and keep all of it."""
