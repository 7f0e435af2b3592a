"""FedBABU's client half; see algorithms/fedbabu.py."""

from typing import final

from fedham_flwr.algorithms.fedbabu import FedBABUSettings
from fedham_flwr.core import trees
from fedham_flwr.core.parameters import Params
from fedham_flwr.federation.client import RoundClient
from fedham_flwr.federation.contract import Outcome


@final
class FedBABUClient(RoundClient):
    """R2, R3: train the body under the first head, and send it; R6: after the rounds all of it, and keep that."""

    own: FedBABUSettings

    def start(self, received: Params) -> Params:
        """The body that came and the first head, whatever an earlier fine-tuning has left."""
        trainer = self.job.trainer
        head = {name: trainer.initial[name] for name in self.split.personal}
        return trees.merge(received, head, trainer.manifest.names())

    def train(self, start: Params) -> Outcome:
        """R2 in the rounds; after them R6, whose order of samples does not depend on how many there were."""
        if not self.job.download.closing:
            after = self.fit(start, only=self.split.shared)
            return Outcome(after, after)
        after = self.fit(start, epochs=self.own.fine_tune_epochs, purpose="personal-stage", each_round=False)
        return Outcome(after, after, after)
