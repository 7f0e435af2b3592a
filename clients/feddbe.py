"""FedDBE's client half; see algorithms/feddbe.py."""

from typing import final

from fedham_flwr.algorithms.feddbe import MEAN, FedDBESettings, MeanRegularised
from fedham_flwr.core.parameters import Params
from fedham_flwr.federation.client import RoundClient
from fedham_flwr.federation.contract import Outcome
from fedham_flwr.models.heads import head_name


@final
class FedDBEClient(RoundClient):
    """R6: keep the offset, send the rest."""

    own: FedDBESettings

    def answer(self) -> Params:
        """R2: the mean of the features of a plain training, in which the offset stays at zero."""
        trainer = self.job.trainer
        first = {**trainer.initial, **self.job.download.extras.tensors}
        trained = self.fit(first, only=self.split.shared, purpose="first")
        seen, _ = self.encode(trained, "train")
        return {MEAN: seen.double().mean(0).float().cpu()}

    def train(self, start: Params) -> Outcome:
        """R5: body, head and offset at once, with the features' mean held near that of all."""
        trainer = self.job.trainer
        goal = self.job.download.extras.tensors[MEAN].to(trainer.device)
        loss = MeanRegularised(head_name(trainer.manifest), goal, self.own.kappa, self.own.mu)
        return self.outcome(self.fit(start, loss=loss))
