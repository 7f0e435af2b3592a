"""GPFL's client half; see algorithms/gpfl.py."""

from typing import final

from fedham_flwr.algorithms.gpfl import EMBEDDINGS, VALVE, Decay, GPFLSettings, Guided, condition, condition_name
from fedham_flwr.core.parameters import Params
from fedham_flwr.federation.client import RoundClient
from fedham_flwr.federation.contract import Outcome
from fedham_flwr.models.heads import head_name


@final
class GPFLClient(RoundClient):
    """R4: keep the head, send the rest."""

    own: GPFLSettings

    def start(self, received: Params) -> Params:
        """R2: the personal condition of the embeddings that came, and the head that was kept."""
        manifest = self.job.trainer.manifest
        place = condition_name(manifest)
        kept = self.recall([name for name in manifest.names() if name not in received and name != place])
        found = {**received, **kept, place: condition(received[self._embeddings], self.job.data.label_counts("train"))}
        return {name: found[name] for name in manifest.names()}

    def train(self, start: Params) -> Outcome:
        """R2, R3: all but the condition at once, guided by the embeddings that came."""
        trainer = self.job.trainer
        loss = Guided(head_name(trainer.manifest), start[self._embeddings].to(trainer.device), self.own.magnitude)
        decay = Decay(trainer.manifest.names((EMBEDDINGS, VALVE)), self.own.decay)
        return self.outcome(self.fit(start, loss=loss, gradient_term=decay if self.own.decay else None))

    @property
    def _embeddings(self) -> str:
        """Name of E in the model."""
        (name,) = self.job.trainer.manifest.names((EMBEDDINGS,))
        return name
