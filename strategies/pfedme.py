"""pFedMe's server half; see algorithms/pfedme.py."""

from collections.abc import Mapping
from typing import final

from fedham_flwr.algorithms.pfedme import PFedMeSettings, check_rates, server_step
from fedham_flwr.federation.contract import Setup, Upload
from strategies.averaging import AveragingStrategy


@final
class PFedMeStrategy(AveragingStrategy):
    """R1, R5: one model for all, which goes to the mean of the clients' copies, or beyond it.

    Raises:
        UserError: the settings name another optimiser, shorten gradients, or have inner steps that run away.
    """

    own: PFedMeSettings

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        self.settings.local_training(1).check_own_steps('strategy="pfedme"')
        check_rates(self.own)

    def merge(self, round_number: int, uploads: Mapping[str, Upload]) -> None:
        """R5: from the parameters that were sent towards the clients' mean; running statistics are the mean."""
        before = self.shared
        super().merge(round_number, uploads)
        moving = {name: tensor for name, tensor in self.shared.items() if name not in self.manifest.buffers}
        self.shared = {**self.shared, **server_step(before, moving, self.own.mixing)}
