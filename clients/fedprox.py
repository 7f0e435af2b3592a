"""FedProx's client half; see algorithms/fedprox.py."""

from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal, final

from torch import Tensor, nn

from clients.base import RoundClient
from fedham_flwr.algorithms.fedprox import add_proximal_
from fedham_flwr.training.trainer import GradientHook


@final
class FedProxClient(RoundClient):
    """R2, R3: train near the global model and send the result; fine-tuned, it is the client's personal model."""

    personal_phase: ClassVar[Literal["before", "after"]] = "after"

    def gradient_hook(self, start: Mapping[str, Tensor]) -> GradientHook | None:
        """The proximal term, towards the model that was received."""
        device, mu = self.job.trainer.device, self.settings.fedprox.mu
        anchors = [start[name].to(device) for name in self.job.trainer.parameter_names]

        def hook(params: Sequence[nn.Parameter]) -> None:
            add_proximal_(params, anchors, mu)  # R2

        return hook
