"""Per-FedAvg's client half; see algorithms/perfedavg.py."""

from typing import final

from fedham_flwr.algorithms.perfedavg import PerFedAvgSettings, rule
from fedham_flwr.core.parameters import Params
from fedham_flwr.federation.client import RoundClient
from fedham_flwr.federation.contract import Outcome
from fedham_flwr.training.step_rules import Descent


@final
class PerFedAvgClient(RoundClient):
    """R4: send the meta-model, use the common one after inner steps."""

    own: PerFedAvgSettings

    def train(self, start: Params) -> Outcome:
        """R2, R3 in rounds; then the personal model, by inner steps from the common one that came."""
        sent = self.fit(start, rule=rule(self.own, self.training.learning_rate)) if self.trains else start
        steps = self.own.adaptation_steps or None  # as many as local training takes
        return Outcome(sent, self.fit(start, steps=steps, rule=Descent(self.own.inner_rate), purpose="adaptation"))
