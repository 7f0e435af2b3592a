"""pFedFDA's client half; see algorithms/pfedfda.py."""

from typing import final

import torch
from torch import Tensor

from fedham_flwr.algorithms import pfedfda
from fedham_flwr.algorithms.pfedfda import Gaussian, PFedFDASettings
from fedham_flwr.core import trees
from fedham_flwr.core.parameters import Params
from fedham_flwr.core.seeding import torch_stream
from fedham_flwr.federation.client import RoundClient
from fedham_flwr.federation.contract import Outcome
from fedham_flwr.models.heads import head_name


@final
class PFedFDAClient(RoundClient):
    """R6: send the body and the Gaussian; the last layer is made from them and the client's data, and stays."""

    own: PFedFDASettings

    def start(self, received: Params) -> Params:
        """The body that came, with the last layer for the client's own data."""
        self.recalled = True  # the model is the client's own: its last layer is, though it is made anew
        first = {name: self.job.trainer.initial[name] for name in self.split.personal}
        return self._adapted(self._whole(received, first))[0]

    def train(self, start: Params) -> Outcome:
        """R2 to R6."""
        body = {name: start[name] for name in self.split.shared}
        frozen = self._whole(body, self._layer(self._common))  # R2
        after, gaussian = self._adapted(self.fit(frozen, only=self.split.shared))  # R3
        if not self.trains:
            return self.outcome(after)
        extras = {name: tensor.float() for name, tensor in gaussian._asdict().items()}
        return Outcome(after, after, {name: after[name] for name in self.split.personal}, extras)

    def _adapted(self, model: Params) -> tuple[Params, Gaussian]:
        """R4 to R6: a model with the last layer for the client's data, and the Gaussian that it is made from."""
        common, kind = self._common, self.own.interpolation
        seen, targets = (found.cpu() for found in self.encode(model, "train"))
        seen = seen.double()
        b = torch.full((2,), float(kind == "own"), dtype=torch.float64)
        if kind == "fitted":
            draw = torch_stream(self.settings.seed, "halves", self.job.download.round, self.job.client)
            b = pfedfda.fitted(seen, targets, pfedfda.halves(targets, draw), common, self.own)  # R5
        gaussian = pfedfda.between(pfedfda.estimate(seen, targets, common, self.own.ridge), common, b)
        return self._whole({name: model[name] for name in self.split.shared}, self._layer(gaussian)), gaussian

    def _layer(self, gaussian: Gaussian) -> Params:
        """The last layer of a Gaussian, with the client's own shares of classes."""
        counts = torch.tensor(self.job.data.label_counts("train"), dtype=torch.float64)
        weight, bias = pfedfda.layer(gaussian, pfedfda.log_priors(counts), self.own.shrinkage)
        head = head_name(self.job.trainer.manifest)
        return {f"{head}.weight": weight.float(), f"{head}.bias": bias.float()}

    def _whole(self, body: Params, head: dict[str, Tensor]) -> Params:
        return trees.merge(body, head, self.job.trainer.manifest.names())

    @property
    def _common(self) -> Gaussian:
        sent = self.job.download.extras.tensors
        return Gaussian(sent["means"].double(), sent["covariance"].double())
