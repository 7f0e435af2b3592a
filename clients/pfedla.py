"""The client half of pFedLA and HeurpFedLA; see algorithms/pfedla.py."""

from typing import final

from fedham_flwr.algorithms.pfedla import PFedLASettings
from fedham_flwr.core.parameters import Params
from fedham_flwr.federation.client import RoundClient
from fedham_flwr.federation.contract import Outcome


@final
class PFedLAClient(RoundClient):
    """R4: start from the mixed layers and from what is one's own: retained layers and running statistics."""

    own: PFedLASettings

    def train(self, start: Params) -> Outcome:
        """R5: keep all tensors, since any layer may be retained next; without retained layers the personal ones."""
        after = self.fit(start)
        return Outcome(after, after, after) if self.own.retained_layers else self.outcome(after)
