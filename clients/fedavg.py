"""FedAvg's client half; see algorithms/fedavg.py."""

from typing import ClassVar, Literal, final

from clients.base import RoundClient


@final
class FedAvgClient(RoundClient):
    """R2, R3: train the global model and send it back; fine-tuned, it is the client's personal model."""

    personal_phase: ClassVar[Literal["before", "after"]] = "after"
