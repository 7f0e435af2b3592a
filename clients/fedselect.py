"""FedSelect's client half; see algorithms/fedselect.py."""

from typing import final

import torch
from torch import Tensor

from fedham_flwr.algorithms import fedselect
from fedham_flwr.algorithms.fedselect import MASK, FedSelectSettings, Masked
from fedham_flwr.core.parameters import Params
from fedham_flwr.federation.client import RoundClient
from fedham_flwr.federation.contract import Outcome

WAS, NEXT, OWN, THEN, ROUNDS = "was/", "next/", "own/", "then/", "count/rounds"
"""What the client keeps: masks of its last round and its next, its weights, theta_k^0, how many rounds it had."""


class Selected(dict[str, Tensor]):
    """The model to start from.

    Args:
        tensors: the model.
        received: what came.
        masks: M_k of this round, bool.
        then: theta_k^0.
        rounds: that the client had before.
    """

    def __init__(self, tensors: Params, received: Params, masks: Params, then: Params, rounds: int) -> None:
        super().__init__(tensors)
        self.received, self.masks, self.then, self.rounds = received, masks, then, rounds


@final
class FedSelectClient(RoundClient):
    """R3 to R5: train personal and shared weights in turns, send what is shared, and let the mask grow."""

    own: FedSelectSettings

    def start(self, received: Params) -> Params:
        """R2: what came, and the client's own where it was personal in its last round."""
        names, initial = fedselect.weights(self.job.trainer.manifest), self.job.trainer.initial
        first: Params = {}
        for name in names:
            none = fedselect.packed(torch.zeros_like(initial[name], dtype=torch.bool))
            first |= {NEXT + name: none, WAS + name: none, OWN + name: initial[name], THEN + name: initial[name]}
        kept = self.recall([*first, ROUNDS], {**first, ROUNDS: torch.zeros(1, dtype=torch.int64)})
        was, masks = ({n: fedselect.unpacked(kept[p + n], received[n].shape) for n in names} for p in (WAS, NEXT))
        own = {name: torch.where(was[name], kept[OWN + name], received[name]) for name in names}
        then = {name: kept[THEN + name] for name in names}
        return Selected({**received, **own}, received, masks, then, int(kept[ROUNDS]))

    def train(self, start: Params) -> Outcome:
        """R3 to R5."""
        assert isinstance(start, Selected)
        after, now = self.trained(start), dict(start.masks)
        then, rounds = start.then, start.rounds + 1
        if rounds % self.own.every == 0:  # R5
            how = self.own.growth, self.own.limit
            now = {name: fedselect.grown(mask, after[name] - then[name], *how) for name, mask in now.items()}
            then = {name: after[name].clone() for name in now}
        sent = {name: torch.where(mask, start.received[name], after[name]) for name, mask in start.masks.items()}
        extras = {MASK + name: fedselect.packed(mask) for name, mask in start.masks.items()}  # R4
        keep = {ROUNDS: torch.tensor([rounds])}
        for name, mask in now.items():
            keep |= {NEXT + name: fedselect.packed(mask), WAS + name: extras[MASK + name]}
            keep |= {OWN + name: after[name], THEN + name: then[name]}
        return Outcome({**after, **sent}, after, keep, extras)

    def trained(self, start: Selected) -> Params:
        """R3: the model after training; FedAvg's while nothing is personal."""
        if not any(bool(mask.any()) for mask in start.masks.values()):
            return self.fit(dict(start))
        trainer, training = self.job.trainer, self.settings.local_training(self.job.download.round)
        personal = {n: torch.zeros_like(start[n]) for n in trainer.parameter_names}
        personal |= {name: mask.float() for name, mask in start.masks.items()}
        shared = {name: 1 - free for name, free in personal.items()}
        model: Params = dict(start)
        for epoch in range(1 if training.steps else training.local_epochs):
            for what, free in (("personal", personal), ("shared", shared)):
                rule = Masked(self.on_device(free), training.learning_rate, training.momentum)
                epochs = None if training.steps else 1
                model = self.fit(model, epochs=epochs, rule=rule, purpose=f"{what} {epoch}")
        return model
