"""FedRoD's client half; see algorithms/fedrod.py."""

from typing import final

from fedham_flwr.algorithms.fedrod import BothHeads
from fedham_flwr.core.parameters import Params
from fedham_flwr.federation.client import RoundClient
from fedham_flwr.federation.contract import Outcome
from fedham_flwr.models.heads import head_name


@final
class FedRoDClient(RoundClient):
    """R4: keep the personal head, send the rest."""

    def train(self, start: Params) -> Outcome:
        """R2, R3: both heads and the body at once, by the sum of two losses that share no gradient."""
        trainer = self.job.trainer
        loss = BothHeads(head_name(trainer.manifest), self.job.data.label_counts("train"), trainer.device)
        return self.outcome(self.fit(start, loss=loss))
