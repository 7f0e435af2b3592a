"""kNN-Per's server half; see algorithms/knnper.py."""

from typing import final

from fedham_flwr.algorithms.knnper import KNNPerSettings
from fedham_flwr.core.errors import UserError
from fedham_flwr.federation.classes import check_classes
from fedham_flwr.federation.contract import Setup
from strategies.averaging import AveragingStrategy


@final
class KNNPerStrategy(AveragingStrategy):
    """R1, R4: the mean of the clients' models; what they remember is never seen here.

    Raises:
        UserError: there are no classes to vote for, or nothing to choose a share by.
    """

    own: KNNPerSettings

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        check_classes(setup, own_loss=False)
        counts = [profile.counts.get("validation", 0) for profile in setup.roster.profiles.values()]
        if self.own.tune_share and counts and not any(counts):
            raise UserError(
                "knnper.tune-share=true chooses a share on validation samples, and no client has any with "
                f"validation-fraction={self.settings.validation_fraction:g}: wanted more, or knnper.share alone"
            )
