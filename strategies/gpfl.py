"""GPFL's server half; see algorithms/gpfl.py."""

from typing import final

from fedham_flwr.federation.classes import check_classes
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
        check_classes(setup)
