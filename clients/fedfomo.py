"""The client half of FedFomo; see algorithms/fedfomo.py."""

from typing import final

import torch

from fedham_flwr.algorithms.fedfomo import FedFomoSettings, distance, mixed, shares, weight
from fedham_flwr.core.parameters import Params
from fedham_flwr.federation.client import RoundClient
from fedham_flwr.federation.contract import Outcome

PREVIOUS = "previous/"
"""Prefix of v_i's tensors in what the client keeps."""


@final
class FedFomoClient(RoundClient):
    """R5: keep the mixture that training began with, send what training made of it, and the weights."""

    own: FedFomoSettings

    def start(self, received: Params) -> Params:
        """R3, R4: the mixture of the models that came, its own last one among them; layers of its own with each."""
        sent, rest = self.job.download.extras, super().start(received)
        first = {PREVIOUS + name: tensor for name, tensor in received.items()}
        before = {name.removeprefix(PREVIOUS): t for name, t in self.recall(list(first), first).items()}
        models = {peer: {n: sent.tensors[f"{peer}/{n}"] for n in received} for peer in sent.facts["peers"]}
        models = dict(sorted({**models, sent.facts["place"][0]: received}.items()))
        if not len(self.job.data.splits["validation"]):
            self.tell([], [])
            return rest
        then, names = self.loss({**rest, **before}), [n for n in self.job.trainer.parameter_names if n in received]
        omega = []
        for model in models.values():
            far = distance(model, before, names)
            omega.append(weight(then, self.loss({**rest, **model}), far) if far else 0.0)
        self.tell(list(models), omega)
        return {**rest, **mixed(before, list(models.values()), shares(omega))}

    def train(self, start: Params) -> Outcome:
        """R5: local training."""
        after = self.fit(start)
        # Copies: what came may be the server's own memory, where another model lies in the next round.
        previous = {PREVIOUS + name: start[name].clone() for name in self.split.shared}
        return Outcome(after, after, {**previous, **{name: after[name] for name in self.split.personal}})

    def loss(self, model: Params) -> float:
        """L_i: the mean loss on the validation split."""
        return self.score(model, "validation").values["loss"]

    def tell(self, places: list[int], omega: list[float]) -> None:
        """What is sent with the reply: whose models were weighed, and the weights."""
        self.extras = {"places": torch.tensor(places, dtype=torch.int64), "omega": torch.tensor(omega)}
