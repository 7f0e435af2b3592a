"""FedProx's client half; see algorithms/fedprox.py."""

from collections.abc import Mapping
from typing import ClassVar, Literal, final

from torch import Tensor

from clients.base import RoundClient
from fedham_flwr.algorithms.fedprox import add_proximal_
from fedham_flwr.training.trainer import GradientTerm


@final
class FedProxClient(RoundClient):
    """R2, R3: train near the global model and send the result; fine-tuned, it is the client's personal model."""

    personal_phase: ClassVar[Literal["before", "after"]] = "after"

    def gradient_term(self, start: Mapping[str, Tensor]) -> GradientTerm | None:
        """The proximal term, towards the model that was received."""
        anchor = {name: tensor.to(self.job.trainer.device) for name, tensor in start.items()}
        mu = self.settings.fedprox.mu
        return lambda name, param, gradient: add_proximal_(param, gradient, anchor[name], mu)  # R2
