"""The client half of pFedGraph; see algorithms/pfedgraph.py."""

from typing import final

from fedham_flwr.algorithms.pfedgraph import PFedGraphSettings, Similarity, reference_of, weight_of
from fedham_flwr.core.parameters import Params
from fedham_flwr.federation.client import RoundClient
from fedham_flwr.federation.contract import Outcome


@final
class PFedGraphClient(RoundClient):
    """R4: send the trained model."""

    own: PFedGraphSettings

    def train(self, start: Params) -> Outcome:
        """R3: local training from the mixture, with a term that makes the model similar to those that were mixed."""
        extras = self.job.download.extras
        if not extras.facts.get("regularised", (0,))[0]:
            return self.outcome(self.fit(start))
        shared = [name for name in self.job.trainer.parameter_names if name in set(self.split.shared)]
        reference = self.on_device(reference_of(extras.tensors, start, shared))
        return self.outcome(self.fit(start, gradient_term=Similarity(reference, weight_of(self.own))))
