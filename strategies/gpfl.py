"""GPFL's server half; see algorithms/gpfl.py."""

from typing import final

from fedham_flwr.algorithms.fedrod import check_target
from fedham_flwr.federation.contract import Setup
from strategies.averaging import AveragingStrategy


@final
class GPFLStrategy(AveragingStrategy):
    """R1, R5: the mean of the clients' bodies, embeddings and valves; their heads are never seen here.

    Raises:
        UserError: there are no classes, or the settings name another loss.
    """

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        target = next((profile.target for profile in setup.roster.profiles.values()), "class")
        check_target(target, 'strategy="gpfl"')
        self.settings.local_training(1).check_task_loss('strategy="gpfl"')
