"""pFedMe's client half; see algorithms/pfedme.py."""

from typing import final

from fedham_flwr.algorithms.pfedme import Envelope, PFedMeSettings
from fedham_flwr.core.parameters import Params
from fedham_flwr.federation.client import RoundClient
from fedham_flwr.federation.contract import Outcome


@final
class PFedMeClient(RoundClient):
    """R4: send the copy of the common model, use the personal one that is held near it."""

    own: PFedMeSettings

    def train(self, start: Params) -> Outcome:
        """R2, R3: both at once, from the common model."""
        rule = Envelope(
            {name: start[name] for name in self.job.trainer.parameter_names}, self.own, self.training.learning_rate
        )
        sent = self.fit(start, rule=rule)
        return Outcome(sent, {**sent, **rule.own})
