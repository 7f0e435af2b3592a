"""FedCP's server half; see algorithms/fedcp.py."""

from typing import final

from fedham_flwr.federation.contract import Setup
from strategies.averaging import AveragingStrategy


@final
class FedCPStrategy(AveragingStrategy):
    """R1, R5: the mean of the clients' bodies, policies and heads, each of which is half the common one.

    Raises:
        UserError: the settings name another loss than the task's.
    """

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        self.settings.local_training(1).check_task_loss('strategy="fedcp"')
