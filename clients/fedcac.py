"""The client half of FedCAC; see algorithms/fedcac.py."""

from typing import final

from fedham_flwr.algorithms.fedcac import FedCACSettings
from fedham_flwr.federation.client import RoundClient


@final
class FedCACClient(RoundClient):
    """R3, R4: train from what was put together, and send the model."""

    own: FedCACSettings
