"""FedALA's client half; see algorithms/fedala.py."""

from typing import final

import torch
from torch import Tensor

from fedham_flwr.algorithms.fedala import FedALASettings, aggregate_locally, weight_step
from fedham_flwr.core.parameters import Params
from fedham_flwr.core.seeding import torch_stream
from fedham_flwr.federation.client import RoundClient
from fedham_flwr.federation.contract import Outcome

WEIGHT, OWN = "weight/", "own/"
"""Prefixes of W_k and w_k in what the client keeps."""
LAST = 10
"""How many losses decide whether the weights have been learned."""


class Aggregated(dict[str, Tensor]):
    """The model to start from, and the weights that it was aggregated with."""

    def __init__(self, tensors: Params, weights: Params) -> None:
        super().__init__(tensors)
        self.weights = weights


@final
class FedALAClient(RoundClient):
    """R4: train from the aggregated model, keep it and its weights, send it."""

    own: FedALASettings

    def start(self, received: Params) -> Params:
        """R2, R3: the global model, and in the last layers what the client's weights take of it."""
        names = self.adaptive()
        first = {OWN + name: self.job.trainer.initial[name] for name in names}
        first |= {WEIGHT + name: torch.ones_like(received[name]) for name in names}
        kept = self.recall(list(first), first)
        own = {name: kept[OWN + name] for name in names}
        weights = {name: kept[WEIGHT + name] for name in names}
        if self.trains and any(not torch.equal(own[name], received[name]) for name in names):
            weights = self.learned(received, own, weights)
        return Aggregated({**received, **mixed(received, own, weights)}, weights)

    def train(self, start: Params) -> Outcome:
        """R4: local training; what is sent is the trained model, what is kept is that and the weights."""
        assert isinstance(start, Aggregated)
        after = self.fit(start)
        kept = {OWN + name: after[name] for name in self.adaptive()}
        return Outcome(after, after, {**kept, **{WEIGHT + name: tensor for name, tensor in start.weights.items()}})

    def adaptive(self) -> tuple[str, ...]:
        """Names of the parameters that are aggregated adaptively."""
        groups = (
            self.job.trainer.manifest.groups[-self.own.layers :]
            if self.own.layers
            else self.job.trainer.manifest.groups
        )
        return tuple(name for group in groups for name in group.parameters)

    def learned(self, received: Params, own: Params, weights: Params) -> Params:
        """R3: the weights after passes over a part of the training samples; after one, if they were learned before."""
        data, job = self.job.data, self.job
        draw = torch_stream(self.settings.seed, "aggregation", job.download.round, job.client)
        count = max(1, round(self.own.share * self.examples))
        steps = -(-count // self.settings.batch_size)
        fresh = all(bool((weights[name] == 1).all()) for name in weights)
        losses: list[float] = []
        for _ in range(self.own.most_passes if fresh else 1):
            for _ in range(steps):
                slope = self.gradient(
                    {**received, **mixed(received, own, weights)}, data, self.settings.batch_size, draw
                )
                weights = {
                    name: weight_step(weights[name], slope[name].cpu(), own[name], received[name], self.own.rate)
                    for name in weights
                }
            losses.append(self.score({**received, **mixed(received, own, weights)}, "train").values["loss"])
            if len(losses) > LAST and torch.tensor(losses[-LAST:]).std().item() < self.own.tolerance:
                break
        return weights


def mixed(received: Params, own: Params, weights: Params) -> Params:
    """R2: the aggregated tensors."""
    return {name: aggregate_locally(own[name], received[name], weights[name]) for name in weights}
