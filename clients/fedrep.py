"""FedRep's client half; see algorithms/fedrep.py."""

from typing import final

from fedham_flwr.algorithms.fedrep import FedRepSettings
from fedham_flwr.core.parameters import Params
from fedham_flwr.federation.client import RoundClient
from fedham_flwr.federation.contract import Outcome
from fedham_flwr.federation.stages import MEET


@final
class FedRepClient(RoundClient):
    """R4: keep the head, send the representation."""

    own: FedRepSettings

    def train(self, start: Params) -> Outcome:
        """R2, R3: first the head, then the representation; a novel client trains its head alone, as in the paper."""
        if self.job.stage is MEET:
            return self.outcome(self.fit(start, only=self.split.personal))
        if self.own.head_epochs:
            start = self.fit(start, only=self.split.personal, epochs=self.own.head_epochs, purpose="head")
        return self.outcome(self.fit(start, only=self.split.shared))
