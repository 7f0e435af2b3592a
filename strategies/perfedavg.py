"""Per-FedAvg's server half; see algorithms/perfedavg.py."""

from typing import final

from fedham_flwr.algorithms.perfedavg import check_precision
from fedham_flwr.federation.contract import Setup
from strategies.averaging import AveragingStrategy


@final
class PerFedAvgStrategy(AveragingStrategy):
    """R1, R5: one model for all, the mean of the clients'.

    Raises:
        UserError: the settings name another optimiser, shorten gradients, or have hf with bf16.
    """

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        self.settings.local_training(1).check_own_steps('strategy="perfedavg"')
        check_precision(self.own, self.settings.precision)
