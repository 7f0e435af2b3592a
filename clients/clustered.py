"""The client half of clustered FedAvg; see algorithms/clustered.py."""

from typing import final

from fedham_flwr.federation.client import RoundClient


@final
class ClusteredClient(RoundClient):
    """R2: train the group's model and send it back."""
