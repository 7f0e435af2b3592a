"""FedPAC's client half; see algorithms/fedpac.py."""

from typing import final

import torch
from torch import Tensor

from fedham_flwr.algorithms.fedpac import FedPACSettings, TowardsMeans, class_means, names_of, statistics
from fedham_flwr.core.parameters import Params
from fedham_flwr.federation.client import RoundClient
from fedham_flwr.federation.contract import Outcome
from fedham_flwr.federation.stages import MEET
from fedham_flwr.models.heads import head_name


@final
class FedPACClient(RoundClient):
    """R5: send the model, and what tells how the client's features lie."""

    own: FedPACSettings

    def train(self, start: Params) -> Outcome:
        """R2 to R5: first the head, then the body; a novel client trains its head alone."""
        body, head = names_of(self.job.trainer.manifest)
        if self.job.stage is MEET:
            return self.outcome(self.fit(start, only=head))
        pulls = self.own.penalty > 0 and bool(self.job.download.extras.tensors)
        extras: Params = {}
        if self.trains or pulls:
            means, shares, variance = statistics(*self.encode(start, "train"), self._classes)  # R2
            extras = {"means": means.float(), "shares": shares.float(), "variance": variance.float()}
        rate = self.own.head_rate * self.settings.local_training(self.job.download.round).learning_rate
        trained = self.fit(start, only=head, epochs=1, learning_rate=rate, purpose="head")  # R3
        loss = self._loss(extras["means"]) if pulls else None
        after = self.fit(trained, only=body, loss=loss)  # R4
        if not self.trains:
            return self.outcome(after)
        extras["trained"] = class_means(*self.encode(after, "train"), self._classes)[0].float()
        return Outcome(after, after, extras=extras)

    def _loss(self, means: Tensor) -> TowardsMeans:
        """R4, with the client's own means of classes that nobody has sent one of."""
        trainer, sent = self.job.trainer, self.job.download.extras
        known = torch.tensor(sent.facts["known"], dtype=torch.bool)[:, None]
        towards = torch.where(known, sent.tensors["means"], means).to(trainer.device)
        return TowardsMeans(head_name(trainer.manifest), towards, self.own.penalty)

    @property
    def _classes(self) -> int:
        """k, the outputs of the head."""
        manifest = self.job.trainer.manifest
        return manifest.shapes[f"{head_name(manifest)}.weight"][0]
