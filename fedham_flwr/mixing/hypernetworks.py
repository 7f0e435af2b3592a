"""The hypernetworks of all clients, stacked: evaluated, differentiated and updated together.

Shape letters: N clients, n clients of a cohort, L layer groups, d embedding, h hidden width. A hypernetwork is a
trainable embedding, hidden layers with ReLU, and one linear head per layer group whose outputs are logits over the N
clients; see algorithms/pfedla.py for what becomes of these. No graph lives from one call to the next.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn.functional import pad, relu

from fedham_flwr.algorithms.pfedla import PFedLASettings
from fedham_flwr.core.errors import UserError
from fedham_flwr.core.parameters import Params, finite_rows
from fedham_flwr.training.optim import momentum_step

log = logging.getLogger("fedham_flwr")

SLAB = 64
"""Hypernetworks that are differentiated at once, which bounds the memory that their copies and gradients take."""


class Hypernetworks:
    """The hypernetworks and embeddings of N clients, stacked, with their optimiser's state.

    Args:
        settings: the method's settings.
        layers: L.

    Attributes:
        params: embedding [N, d]; hidden.k.weight [N, h, d or h] and hidden.k.bias [N, h]; heads.weight [N, L, N, h]
            and heads.bias [N, L, N], the logits of every layer.
        velocity: as params with momentum, else empty.
    """

    def __init__(self, settings: PFedLASettings, layers: int) -> None:
        self.settings = settings
        self.layers = layers
        self.params: Params = {}
        self.velocity: Params = {}

    def add(self, generators: Sequence[torch.Generator]) -> None:
        """Give new clients fresh hypernetworks, and every client a logit for each of them.

        Args:
            generators: one for each new client; its draws depend on nothing else.
        """
        known = len(self.params["embedding"]) if self.params else 0
        total = known + len(generators)
        fresh = [self._fresh(total, known + i, generator) for i, generator in enumerate(generators)]
        added = {name: torch.stack([one[name] for one in fresh]) for name in fresh[0]}
        grown = {}
        for name, tensor in self.params.items():
            columns = [(0, 0)] * (tensor.dim() - 3) + [(0, total - known)]
            flat = [n for pair in columns for n in pair]
            grown[name] = pad(tensor, flat) if name.startswith("heads.") else tensor
        if known and self.settings.normaliser == "relu-sum":
            for i, generator in enumerate(generators):  # a logit of 0 would never be left
                column = grown["heads.weight"][:, :, known + i]
                column.copy_(torch.rand(column.shape, generator=generator))
        self.params = {name: torch.cat([grown[name], added[name]]) if known else added[name] for name in added}
        if self.settings.hypernetwork_momentum:
            velocity = {name: torch.zeros_like(tensor) for name, tensor in self.params.items()}
            for name, tensor in self.velocity.items():
                velocity[name][tuple(slice(size) for size in tensor.shape)] = tensor
            self.velocity = velocity

    def _fresh(self, peers: int, own: int, generator: torch.Generator) -> Params:
        """One client's embedding (standard normal) and hypernetwork, hidden layers as torch's `Linear` starts them."""
        settings, params = self.settings, {"embedding": torch.randn(self.settings.embedding_dim, generator=generator)}
        width = settings.embedding_dim
        for k in range(settings.hidden_layers):
            params[f"hidden.{k}.weight"] = _uniform((settings.hidden_dim, width), width, generator)
            params[f"hidden.{k}.bias"] = _uniform((settings.hidden_dim,), width, generator)
            width = settings.hidden_dim
        heads = torch.zeros(self.layers, peers, width)
        if settings.normaliser == "relu-sum":
            heads = torch.rand(heads.shape, generator=generator)
        bias = torch.zeros(self.layers, peers)
        bias[:, own] = settings.self_bias
        return params | {"heads.weight": heads, "heads.bias": bias}

    def logits(self, rows: Tensor) -> Tensor:
        """R1: s_i^l in R^N for some clients."""
        return logits({name: tensor[rows] for name, tensor in self.params.items()})

    def step(self, rows: Tensor, gradient: Tensor) -> None:
        """R7: descend along a gradient with respect to the logits; no other client's tensors change.

        A client whose step would lead to numbers that are not finite keeps its hypernetwork: that is its own model's
        fault, unless it happens to most.

        Args:
            rows: of the clients, each once.
            gradient: of the surrogate with respect to their logits.

        Raises:
            UserError: it happens to most clients; those of them that were looked at keep theirs.
        """
        names, diverged = list(self.params), 0
        rate, momentum = self.settings.hypernetwork_learning_rate, self.settings.hypernetwork_momentum
        for some, slope in zip(torch.split(rows, SLAB), torch.split(gradient, SLAB), strict=True):
            mine = [self.params[name][some].requires_grad_() for name in names]
            with torch.enable_grad():
                out = logits(dict(zip(names, mine, strict=True)))
                # Of a scalar: to be given a gradient to start from, torch imports hundreds of modules first.
                surrogate = (out * slope.to(out)).sum()
            # Without hidden layers or with heads of zero, some tensors have a gradient of zero and none is unused.
            slopes = torch.autograd.grad(surrogate, mine)
            momenta: list[Tensor | None] = [self.velocity[name][some] if self.velocity else None for name in names]
            with torch.no_grad():
                momentum_step(mine, slopes, momenta, rate=rate, momentum=momentum)
                seen = [logits(dict(zip(names, mine, strict=True))), *mine, *(v for v in momenta if v is not None)]
                good = torch.stack([finite_rows(tensor) for tensor in seen]).all(0)
                diverged += int((~good).sum())
                for name, tensor, velocity in zip(names, mine, momenta, strict=True):
                    self.params[name][some[good]] = tensor[good]
                    if self.velocity and velocity is not None:
                        self.velocity[name][some[good]] = velocity[good]
        if 2 * diverged > len(rows):
            raise UserError(f"the hypernetworks diverged: lower pfedla.hypernetwork-learning-rate={rate:g}")
        if diverged:
            log.warning("the hypernetworks of %s clients would have diverged, and stay as they were", diverged)


def _uniform(shape: tuple[int, ...], fan_in: int, generator: torch.Generator) -> Tensor:
    drawn: Tensor = torch.rand(shape, generator=generator) * 2 - 1
    return drawn.div_(math.sqrt(fan_in))


def logits(params: Mapping[str, Tensor]) -> Tensor:
    """R1: the hypernetworks of n clients at once.

    Args:
        params: as `Hypernetworks.params`, for n clients.
    """
    hidden = params["embedding"].unsqueeze(2)  # [n, d, 1]
    for k in range(sum(name.startswith("hidden.") for name in params) // 2):
        bias = params[f"hidden.{k}.bias"].unsqueeze(2)
        hidden = relu(torch.baddbmm(bias, params[f"hidden.{k}.weight"], hidden))  # [n, h, 1]
    heads, bias = params["heads.weight"], params["heads.bias"]
    scores: Tensor = torch.bmm(heads.flatten(1, 2), hidden)  # [n, L N, 1]
    return bias + scores.view(bias.shape)
