"""FedBN's server half; see algorithms/fedbn.py."""

import logging
from typing import final

from fedham_flwr.algorithms.fedbn import FedBNSettings
from fedham_flwr.core.normalisation import normalisation
from fedham_flwr.federation.contract import Setup
from strategies.averaging import AveragingStrategy

log = logging.getLogger("fedham_flwr")


@final
class FedBNStrategy(AveragingStrategy):
    """R1, R4: the mean of everything but normalisation, which is never seen here; says so where there is none."""

    own: FedBNSettings

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        if not normalisation(self.manifest, self.own.layers):
            what = "batch normalisation" if self.own.layers == "batch" else "normalisation layers"
            others = self.own.layers == "batch" and normalisation(self.manifest, "all")
            way = '; fedbn.layers="all" keeps its other normalisation layers with the clients' if others else ""
            log.warning('strategy="fedbn": this network has no %s, so that it is fedavg%s', what, way)
