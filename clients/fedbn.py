"""FedBN's client half; see algorithms/fedbn.py."""

from typing import final

from fedham_flwr.federation.client import RoundClient


@final
class FedBNClient(RoundClient):
    """R2, R3: train the whole model, keep its normalisation layers, send the rest."""
