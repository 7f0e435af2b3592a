"""Ditto's client half; see algorithms/ditto.py."""

from typing import final

from fedham_flwr.algorithms.ditto import DittoSettings
from fedham_flwr.algorithms.fedprox import Proximal
from fedham_flwr.core.parameters import Params
from fedham_flwr.federation.client import RoundClient
from fedham_flwr.federation.contract import Outcome

PRIVATE = "private/"
"""Prefix of v_k's tensors in what the client keeps."""


@final
class DittoClient(RoundClient):
    """R4: keep the private model, which is the one that the client uses, and send the other."""

    own: DittoSettings

    def start(self, received: Params) -> Params:
        """The private model, as kept or as at the first."""
        first = {PRIVATE + name: tensor for name, tensor in self.job.trainer.initial.items()}
        kept = self.recall(list(first), first)
        return {name.removeprefix(PRIVATE): tensor for name, tensor in kept.items()}

    def train(self, start: Params) -> Outcome:
        """R2 in rounds, R3: the private model is held near the global one that came, not the one that it became."""
        received = self.job.download.params
        sent = self.fit(dict(received), purpose="global") if self.trains else received  # R2
        private = self.fit(start, gradient_term=Proximal(self.on_device(received), self.own.penalty))  # R3
        return Outcome(sent, private, {PRIVATE + name: tensor for name, tensor in private.items()})
