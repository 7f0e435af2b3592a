"""kNN-Per's client half; see algorithms/knnper.py."""

from functools import partial
from typing import final

import torch

from fedham_flwr.algorithms.knnper import SHARES, KNNPerSettings, voting
from fedham_flwr.core.parameters import Params
from fedham_flwr.core.seeding import torch_stream
from fedham_flwr.federation.client import RoundClient
from fedham_flwr.federation.contract import Outcome
from fedham_flwr.federation.stages import MEET
from fedham_flwr.models.heads import head_name
from fedham_flwr.training.trainer import Predictor


@final
class KNNPerClient(RoundClient):
    """R3: send what training makes of the model, and use the one that came."""

    own: KNNPerSettings

    def start(self, received: Params) -> Params:
        """The model that came; with a vote what predicts is the client's own, and no global model is scored."""
        model = super().start(received)
        self.recalled = self.own.tune_share or self.own.share > 0
        return model

    def train(self, start: Params) -> Outcome:
        """R2 in rounds, and nothing between them: it would be forgotten; a novel client is asked to train."""
        if self.job.stage is MEET:
            return self.outcome(self.fit(start))
        return Outcome(self.fit(start) if self.trains else start, start)

    def predictor(self) -> Predictor:
        """R5, R6: the model that is loaded, and the vote of the client's own training samples by its features."""
        own, trainer = self.own, self.job.trainer
        keys, targets = trainer.encode(self.job.data, "train")
        if 0 < own.capacity < len(keys):
            draw = torch_stream(self.settings.seed, "memory", client=self.job.client)
            chosen = torch.randperm(len(keys), generator=draw)[: own.capacity].to(keys.device)
            keys, targets = keys[chosen], targets[chosen]
        mixed = partial(voting, head_name(trainer.manifest), keys, targets, own.neighbours, scale=own.scale)
        if not (own.tune_share and len(self.job.data.splits["validation"])):
            return mixed(share=own.share)
        scores = {share: trainer.evaluate(self.job.data, "validation", mixed(share=share)) for share in SHARES}
        return mixed(share=max(SHARES, key=lambda share: (scores[share].values["accuracy"], -scores[share].loss)))
