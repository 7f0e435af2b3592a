"""APFL's server half; see algorithms/apfl.py."""

from typing import final

from fedham_flwr.federation.contract import Setup
from strategies.averaging import AveragingStrategy


@final
class APFLStrategy(AveragingStrategy):
    """R1, R6: the mean of the clients' copies of the common model; their own models are never seen here.

    Raises:
        UserError: the settings name another optimiser, or shorten gradients.
    """

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        self.settings.local_training(1).check_own_steps('strategy="apfl"')
