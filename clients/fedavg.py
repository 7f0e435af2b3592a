"""FedAvg's client half; see algorithms/fedavg.py."""

from typing import final

from fedham_flwr.federation.client import RoundClient


@final
class FedAvgClient(RoundClient):
    """R2, R3: train the global model and send it back; fine-tuned, it is the client's personal model."""
