"""LG-FedAvg's client half; see algorithms/lgfedavg.py."""

from typing import final

from fedham_flwr.federation.client import RoundClient


@final
class LGFedAvgClient(RoundClient):
    """R2, R3: train the lower layers and the common ones together, keep the former, send the latter."""
