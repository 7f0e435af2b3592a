"""kNN-Per's server half; see algorithms/knnper.py."""

from typing import final

from fedham_flwr.federation.classes import check_classes
from fedham_flwr.federation.contract import Setup
from strategies.averaging import AveragingStrategy


@final
class KNNPerStrategy(AveragingStrategy):
    """R1, R4: the mean of the clients' models; what they remember is never seen here.

    Raises:
        UserError: there are no classes to vote for.
    """

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        check_classes(setup, own_loss=False)
