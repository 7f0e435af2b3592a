"""The client half of Fed_T and Fed_T_A; see algorithms/fedtransfer.py."""

from typing import final

from fedham_flwr.algorithms import fedtransfer
from fedham_flwr.algorithms.fedtransfer import FedTransferSettings
from fedham_flwr.core import trees
from fedham_flwr.core.parameters import Params
from fedham_flwr.federation.client import RoundClient
from fedham_flwr.federation.contract import Outcome
from fedham_flwr.models import grafts


@final
class FedTransferClient(RoundClient):
    """R2, R3: FedAvg's rounds, in which the client's own block rests; R6, R7, R8: then the personal stage."""

    own: FedTransferSettings

    def start(self, received: Params) -> Params:
        """R6: what came, and a fresh block, which changes nothing before the personal stage."""
        trainer = self.job.trainer
        fresh = {name: trainer.initial[name] for name in self.split.personal}
        if self.own.insertion == "plain" and fresh and not self.job.download.closing:
            fresh = grafts.at_rest(self.own.attention, fresh)
        return trees.merge(received, fresh, trainer.manifest.names())

    def train(self, start: Params) -> Outcome:
        """R2 in the rounds; after them R7 and R8.

        The order of samples in the personal stage does not depend on the number of rounds before it, so that a stage
        that starts later from the same model is the same.
        """
        manifest, own = self.job.trainer.manifest, self.own
        if not self.job.download.closing:
            rests = fedtransfer.block_groups(own)
            only = manifest.names(name for name in manifest.group_names if name not in rests) if rests else None
            after = self.fit(start, only=only)
            return Outcome(after, after)
        rests = fedtransfer.frozen_groups(manifest.groups, own)
        only = manifest.names(name for name in manifest.group_names if name not in rests) if rests else None
        after = self.fit(
            start,
            only=only,
            epochs=own.personal_epochs,
            learning_rate=own.learning_rate or None,
            purpose="personal-stage",
            each_round=False,
        )
        return Outcome(after, after, after)
