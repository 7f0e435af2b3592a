"""The client half of FedAMP and HeurFedAMP; see algorithms/fedamp.py."""

from typing import final

from fedham_flwr.algorithms.fedamp import FedAMPSettings, step_of
from fedham_flwr.algorithms.fedprox import Proximal
from fedham_flwr.core.parameters import Params
from fedham_flwr.federation.client import RoundClient
from fedham_flwr.federation.contract import Outcome


@final
class FedAMPClient(RoundClient):
    """R4: keep the running statistics, send the rest."""

    own: FedAMPSettings

    def train(self, start: Params) -> Outcome:
        """R3: local training from the cloud model, which pulls at it."""
        pull = self.own.penalty / step_of(self.own, self.job.download.round)
        shared = {name: start[name] for name in self.split.shared}
        return self.outcome(self.fit(start, gradient_term=Proximal(self.on_device(shared), pull)))
