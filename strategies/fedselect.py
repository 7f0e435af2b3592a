"""The server half of FedSelect; see algorithms/fedselect.py."""

from collections.abc import Mapping
from typing import ClassVar, final

from fedham_flwr.algorithms import fedselect
from fedham_flwr.algorithms.fedselect import MASK, FedSelectSettings
from fedham_flwr.core.parameters import Params, check_names
from fedham_flwr.federation.contract import Setup, Upload
from fedham_flwr.federation.stages import TRAIN
from strategies.averaging import AveragingStrategy


@final
class FedSelectStrategy(AveragingStrategy):
    """R1, R6: the mean of each weight over the clients that share it; no mask is kept here.

    Raises:
        UserError: local training is not by plain SGD.
    """

    own: FedSelectSettings
    aggregates: ClassVar[bool] = False  # each weight has a mean over clients of its own

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        self._weights = fedselect.weights(self.manifest)
        fedselect.check_training(self.settings.local_training(1))

    def merge(self, round_number: int, uploads: Mapping[str, Upload]) -> None:
        """Replace each weight by its mean."""
        masks = [self._masks(upload.extras) for upload in uploads.values()]
        models = [upload.params for upload in uploads.values()]
        examples = [upload.examples for upload in uploads.values()]
        self.shared = fedselect.aggregate(self.shared, models, masks, examples)

    def check_extras(self, stage: str, client: str, tensors: Params) -> None:
        """Refuse masks that are none.

        Raises:
            ValueError: one is missing or too many, or is not one of these settings.
        """
        wanted = self._weights if stage == TRAIN.name else ()
        check_names(tensors, [MASK + name for name in wanted])
        for name in wanted:
            fedselect.check_mask(name, tensors[MASK + name], self.manifest.shapes[name], self.own.limit)

    def _masks(self, extras: Params) -> Params:
        return {name: fedselect.unpacked(extras[MASK + name], self.manifest.shapes[name]) for name in self._weights}
