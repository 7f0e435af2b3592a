"""APFL's client half; see algorithms/apfl.py."""

from collections.abc import Mapping
from typing import final

import torch
from torch import Tensor

from fedham_flwr.algorithms.apfl import ALPHA, APFLSettings, Mixing, mixed
from fedham_flwr.core.parameters import Params
from fedham_flwr.federation.client import RoundClient
from fedham_flwr.federation.contract import Outcome

PRIVATE = "private/"
"""Prefix of v_k's tensors in what the client keeps."""


class Mixture(dict[str, Tensor]):
    """The model to start from, and what it is mixed of beside the common model."""

    def __init__(self, tensors: Params, private: Params, alpha: Tensor) -> None:
        super().__init__(tensors)
        self.private, self.alpha = private, alpha


@final
class APFLClient(RoundClient):
    """R5: keep the own model and alpha, send the copy of the common one, use their mixture."""

    own: APFLSettings

    def start(self, received: Params) -> Params:
        """The mixture of the common model that came and the own one, as kept or as at the first."""
        first = {PRIVATE + name: tensor for name, tensor in received.items()}
        kept = self.recall([*first, ALPHA], {**first, ALPHA: torch.tensor(self.own.alpha)})
        private = {name: kept[PRIVATE + name] for name in received}
        return Mixture(self.mixed(private, received, kept[ALPHA]), private, kept[ALPHA])

    def train(self, start: Params) -> Outcome:
        """R2, R3, R4: all at once, each batch for both models."""
        assert isinstance(start, Mixture)
        names = self.job.trainer.parameter_names
        rule = Mixing(
            {name: start.private[name] for name in names}, start.alpha, self.own.adapt, self.training.learning_rate
        )
        sent = self.fit(dict(self.job.download.params), rule=rule)
        private, alpha = {**sent, **{name: rule.own[name] for name in names}}, rule.own[ALPHA]
        keep = {PRIVATE + name: tensor for name, tensor in private.items()}
        return Outcome(sent, self.mixed(private, sent, alpha), {**keep, ALPHA: alpha})

    def mixed(self, private: Params, common: Mapping[str, Tensor], alpha: Tensor) -> Params:
        """The model that this client uses."""
        return mixed(private, common, alpha, set(self.job.trainer.parameter_names))
