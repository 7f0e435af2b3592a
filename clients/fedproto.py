"""FedProto's client half; see algorithms/fedproto.py."""

from typing import final

import torch

from fedham_flwr.algorithms.fedpac import class_means
from fedham_flwr.algorithms.fedproto import FedProtoSettings, TowardsPrototypes, nearest_layer, to_send
from fedham_flwr.core.errors import UserError
from fedham_flwr.core.parameters import Params
from fedham_flwr.federation.client import RoundClient
from fedham_flwr.federation.contract import Outcome
from fedham_flwr.models.heads import head_name


@final
class FedProtoClient(RoundClient):
    """R4: keep the whole network, with the last layer that was trained, and send class means."""

    own: FedProtoSettings

    def start(self, received: Params) -> Params:
        """The own network; its last layer is the nearest prototype's, once there are prototypes (R6)."""
        model = super().start(received)
        self._trained = {name: model[name] for name in model if name.rpartition(".")[0] == self._head}
        return self._predicting(model)

    def train(self, start: Params) -> Outcome:
        """R2, R3, R4."""
        after = self.fit({**start, **self._trained}, loss=self._loss())
        extras: Params = {}
        if self.trains:
            means, counts = class_means(*self.encode(after, "train"), self._size[0])
            means, shares = to_send(means, counts, self.own.min_samples)
            extras = {"means": means.float(), "shares": shares.float()}
        return Outcome({}, self._predicting(after), after, extras)

    def _predicting(self, model: Params) -> Params:
        """R6: the model that predicts, with the nearest prototype's last layer if prototypes do.

        The client's own stand in for global ones of classes that it has, and of which nobody has sent one.
        """
        means, known = self._prototypes
        if self.own.predict == "head" or not bool(known.any()):
            return model
        counts = self.job.data.label_counts("train")
        if lacking := [place for place, count in enumerate(counts) if count and not known[place]]:
            own, _ = class_means(*self.encode(model, "train"), self._size[0])
            means, known = means.clone(), known.clone()
            means[lacking], known[lacking] = own[lacking].float(), True
        weight, bias = nearest_layer(means, known)
        return {**model, f"{self._head}.weight": weight, f"{self._head}.bias": bias}

    def _loss(self) -> TowardsPrototypes | None:
        """R2; None where nothing pulls."""
        means, known = self._prototypes
        if not self.own.penalty or not bool(known.any()):
            return None
        device = self.job.trainer.device
        return TowardsPrototypes(self._head, means.to(device), known.float().to(device), self.own.penalty)

    @property
    def _prototypes(self) -> tuple[torch.Tensor, torch.Tensor]:
        """C and of which classes there is one, as they came.

        Raises:
            UserError: they are of features of another width than this network's.
        """
        sent = self.job.download.extras
        if not sent.tensors:
            return torch.zeros(self._size), torch.zeros(self._size[0], dtype=torch.bool)
        means = sent.tensors["means"]
        if tuple(means.shape) != self._size:
            raise UserError(
                f"client {self.job.client} has a network with {self._size[0]} classes and {self._size[1]} features, "
                f"and the prototypes of this run are {tuple(means.shape)}: wanted a network like the others' in this"
            )
        return means, torch.tensor(sent.facts["known"], dtype=torch.bool)

    @property
    def _head(self) -> str:
        """Name of the last layer."""
        return head_name(self.job.trainer.manifest)

    @property
    def _size(self) -> tuple[int, int]:
        """Classes k and features d."""
        k, d = self.job.trainer.manifest.shapes[f"{self._head}.weight"]
        return k, d
