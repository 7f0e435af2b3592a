"""FedAS's client half; see algorithms/fedas.py."""

import dataclasses
from typing import final

import torch

from fedham_flwr.algorithms.fedas import Alignment, FedASSettings
from fedham_flwr.algorithms.fedpac import class_means
from fedham_flwr.core.parameters import Params
from fedham_flwr.core.seeding import torch_stream
from fedham_flwr.federation.client import RoundClient
from fedham_flwr.federation.contract import Outcome
from fedham_flwr.models.heads import head_name

MEANS, KNOWN = "past/means", "past/known"
"""Names of p_k, and of which classes there is one, in what the client keeps."""


@final
class FedASClient(RoundClient):
    """R4: keep the head and the class means, send the body and the trace."""

    own: FedASSettings

    def start(self, received: Params) -> Params:
        """R2: the body that came, aligned to the client's past, with the head that was kept."""
        model = super().start(received)
        if not self.own.align_epochs:
            return model
        k, d = self._size
        past = self.recall([MEANS, KNOWN], {MEANS: torch.zeros(k, d), KNOWN: torch.zeros(k)})
        if not bool(past[KNOWN].any()):
            return model
        trainer, own = self.job.trainer, self.own
        loss = Alignment(head_name(trainer.manifest), past[MEANS].to(trainer.device), past[KNOWN].to(trainer.device))
        epochs, rate = own.align_epochs, own.align_rate
        return self.fit(
            model, only=self.split.shared, epochs=epochs, learning_rate=rate, loss=loss, purpose="alignment"
        )

    def train(self, start: Params) -> Outcome:
        """R3, R4."""
        after = self.fit(start)
        if not self.trains:
            return self.outcome(after)
        keep = {name: after[name] for name in self.split.personal}
        if self.own.align_epochs:
            means, counts = class_means(*self.encode(after, "train"), self._size[0])
            keep |= {MEANS: means.float(), KNOWN: (counts > 0).float()}
        extras = {"trace": self._trace(after)} if self.own.weights == "fisher" else {}
        return Outcome(after, after, keep, extras)

    def _trace(self, model: Params) -> torch.Tensor:
        """R4: the sum over batches of the squared length of the gradient of their mean loss: float32, a number."""
        job, data, total = self.job, self.job.data, 0.0
        draw = torch_stream(self.settings.seed, "fisher", job.download.round, job.client)
        for batch in torch.split(data.splits["train"], self.settings.batch_size):
            part = dataclasses.replace(data, splits={**data.splits, "train": batch})
            slopes = self.gradient(model, part, len(batch), draw)
            total += sum(float(slope.double().square().sum()) for slope in slopes.values())
        return torch.tensor(total, dtype=torch.float32)

    @property
    def _size(self) -> tuple[int, int]:
        """Outputs k and features d of the head."""
        manifest = self.job.trainer.manifest
        k, d = manifest.shapes[f"{head_name(manifest)}.weight"]
        return k, d
