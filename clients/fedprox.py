"""FedProx's client half; see algorithms/fedprox.py."""

from typing import final

from fedham_flwr.algorithms.fedprox import FedProxSettings, Proximal
from fedham_flwr.core.parameters import Params
from fedham_flwr.federation.client import RoundClient
from fedham_flwr.federation.contract import Outcome


@final
class FedProxClient(RoundClient):
    """R2, R3: train near the global model and send the result; fine-tuned, it is the client's personal model."""

    own: FedProxSettings

    def train(self, start: Params) -> Outcome:
        """Local training with the proximal term, towards the model that was received."""
        shared = {name: start[name] for name in self.split.shared}
        return self.outcome(self.fit(start, gradient_term=Proximal(self.on_device(shared), self.own.mu)))  # R2
