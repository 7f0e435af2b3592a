"""The optimisers of local training for many clients at once: elementwise, so that stacking changes nothing."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fedham_flwr.training.local import LocalTraining
from fedham_flwr.training.optim import FUSED, adam_step, descent, momentum_step


class StackedOptimizer:
    """SGD, Adam or AdamW of stacked parameters, of which a step may move the first clients only.

    Args:
        params: tensors [n, ...], changed in place.
        training: which optimiser, and its settings.
    """

    def __init__(self, params: Sequence[Tensor], training: LocalTraining) -> None:
        self._params, self._settings = list(params), training
        self._first: list[Tensor | None] = [None] * len(self._params)
        self._second: list[Tensor | None] = [None] * len(self._params)
        self._steps = [torch.zeros(()) for _ in self._params]
        self._fused = bool(self._params) and self._params[0].device.type in FUSED

    def step(self, slopes: Sequence[Tensor | None], clients: int) -> None:
        """One update of the first clients; a parameter without a gradient stays as it is.

        Args:
            slopes: gradients [clients, ...].
            clients: m, never more than in the step before.
        """
        moved = [place for place, slope in enumerate(slopes) if slope is not None]
        params = [self._params[place][:clients] for place in moved]
        grads = [slope for slope in slopes if slope is not None]
        if self._settings.optimizer == "sgd":
            self._descend(moved, params, grads, clients)
        else:
            self._adapt(moved, params, grads, clients)

    def _descend(self, moved: list[int], params: list[Tensor], grads: list[Tensor], clients: int) -> None:
        held = [self._first[place] for place in moved]
        momenta = [None if momentum is None else momentum[:clients] for momentum in held]
        momentum_step(params, grads, momenta, fused=self._fused, **descent(self._settings))
        for place, before, momentum in zip(moved, held, momenta, strict=True):
            if before is None:
                self._first[place] = momentum

    def _adapt(self, moved: list[int], params: list[Tensor], grads: list[Tensor], clients: int) -> None:
        for place in moved:
            if self._first[place] is None:
                self._first[place] = torch.zeros_like(self._params[place])
                self._second[place] = torch.zeros_like(self._params[place])
        adam_step(
            params,
            grads,
            [first[:clients] for place in moved if (first := self._first[place]) is not None],
            [second[:clients] for place in moved if (second := self._second[place]) is not None],
            [self._steps[place] for place in moved],
            self._settings,
            self._fused,
        )
