"""Training a model through a mixture that it is a part of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from fedham_flwr.core.parameters import Params
from fedham_flwr.core.trees import stack


class Hybrid(dict[str, Tensor]):
    """A mixture h = b w + (1 - b) c of a client's own model w with another.

    Args:
        tensors: h; running statistics are w's.
        own: w.
        beta: b of each parameter, by name; 1 for those that are not mixed.
    """

    def __init__(self, tensors: Params, own: Params, beta: Mapping[str, float]) -> None:
        super().__init__(tensors)
        self.own, self.beta = own, beta

    def rest(self) -> Params:
        """(1 - b) c, of the parameters."""
        return {name: self[name] - b * self.own[name] for name, b in self.beta.items()}

    def own_after(self, after: Params) -> Params:
        """The w whose mixture is what training has made of h; where b is 0 the w that there was."""
        moved = {n: self.own[n] + ((after[n] - self[n]) / b if b else 0.0) for n, b in self.beta.items()}
        return {**after, **moved}


class Through:
    """R5, B2, as a term of the gradient: h_i moves by beta_i times the step of w_i, whose gradient is beta_i dL/dh_i.

    Args:
        beta: the gate of each parameter, by name: a number, or [n] of n clients.
        rest: (1 - beta_i) c_i, which weight decay, meant for w_i, must not pull at: tensors as the parameters, or
            [n, ...]; empty without weight decay.
        decay: weight decay.
    """

    def __init__(self, beta: Mapping[str, float | Tensor], rest: Mapping[str, Tensor], decay: float) -> None:
        self._beta, self._rest, self._decay = beta, rest, decay

    def __call__(self, name: str, param: Tensor, gradient: Tensor) -> None:
        """Change a gradient in place: of one client, or of the first clients of a stack."""
        beta, clients = self._beta[name], len(gradient) if gradient.dim() else 0
        if isinstance(beta, Tensor):
            gradient.mul_(beta[:clients].square().view(-1, *[1] * (gradient.dim() - 1)))
        else:
            gradient.mul_(beta**2)
        if self._decay:
            rest = self._rest[name]
            gradient.sub_(rest if rest.shape == param.shape else rest[:clients], alpha=self._decay)

    def stacked(self, terms: Sequence[Through]) -> Through:
        """One term for several clients, of which this is the first; all have the same weight decay."""
        beta = {n: torch.tensor([term._beta[n] for term in terms]) for n in self._beta}
        return Through({n: b.to(self._device) for n, b in beta.items()}, stack([t._rest for t in terms]), self._decay)

    @property
    def _device(self) -> torch.device:
        return next((tensor.device for tensor in self._rest.values()), torch.device("cpu"))
