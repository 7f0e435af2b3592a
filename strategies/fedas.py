"""FedAS's server half; see algorithms/fedas.py."""

from collections.abc import Mapping
from typing import ClassVar, final

import torch

from fedham_flwr.algorithms import fedas
from fedham_flwr.algorithms.fedas import FedASSettings
from fedham_flwr.core.parameters import Params
from fedham_flwr.core.trees import weighted_mean
from fedham_flwr.federation.classes import check_classes
from fedham_flwr.federation.contract import Setup, Upload
from fedham_flwr.federation.extras import check_tensors
from strategies.averaging import AveragingStrategy

MOST_TRACE = 1e12
"""A trace above it is refused: gradients of a network that trains are many orders of magnitude below."""


@final
class FedASStrategy(AveragingStrategy):
    """R1, R5: the mean of the bodies, weighted by what clients say of their Fisher information.

    Raises:
        UserError: there are no classes, or the settings name another loss.
    """

    own: FedASSettings
    aggregates: ClassVar[bool] = False  # the weights of the mean are the method itself

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        check_classes(setup)

    def merge(self, round_number: int, uploads: Mapping[str, Upload]) -> None:
        """R5."""
        if self.own.weights == "samples":
            super().merge(round_number, uploads)
            return
        replies = list(uploads.values())
        traces = torch.stack([reply.extras["trace"].double() for reply in replies])
        samples = torch.tensor([reply.examples for reply in replies], dtype=torch.float64)
        weights = fedas.client_weights(traces, samples, self.own.most_share)
        self.shared = weighted_mean([reply.params for reply in replies], weights.tolist())

    def check_extras(self, stage: str, client: str, tensors: Params) -> None:
        """Refuse a trace that cannot be.

        Raises:
            ValueError: it is missing or no number, negative, not finite or too large.
        """
        wanted = stage == "train" and self.own.weights == "fisher"
        check_tensors(tensors, {"trace": ()} if wanted else {}, MOST_TRACE)
        if tensors and float(tensors["trace"]) < 0:
            raise ValueError("trace is negative")
