"""The hypernetworks of all clients, stacked: evaluated, differentiated and updated together.

Shape letters: N clients, n clients of a cohort, L layer groups, d embedding, h hidden width, r rank. A hypernetwork is
a trainable embedding, hidden layers with ReLU, and one linear head per layer group with K outputs: logits over the N
clients, or their r + 1 factors; see algorithms/pfedla.py. No graph lives from one call to the next.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from fedham_flwr.algorithms.pfedla import DENSE_CLIENTS, PFedLASettings
from fedham_flwr.core.errors import UserError
from fedham_flwr.core.pairs import columns_gradient, outputs_gradient, pair_scores
from fedham_flwr.core.parameters import Params, all_finite, enlarged, finite_rows
from fedham_flwr.core.perceptrons import outputs, uniform
from fedham_flwr.training.optim import momentum_step

log = logging.getLogger("fedham_flwr")

SLAB = 64
"""Hypernetworks that are differentiated at once, which bounds the memory that their copies and gradients take."""
PEERS = "peers"
"""The one tensor whose rows are of the clients as peers, and learn from all who weigh them."""


class Hypernetworks:
    """The hypernetworks and embeddings of N clients, stacked, with their optimiser's state.

    Args:
        settings: the method's settings.
        layers: L.

    Attributes:
        head: auto until there are clients; then dense or factorised, for good.
        params: embedding [N, d]; hidden.k.weight [N, h, d or h] and hidden.k.bias [N, h]; heads.weight [N, L, K, h]
            and heads.bias [N, L, K] with K = N; or, factorised, with K = r + 1, and peers [N, L, r].
        velocity: as params with momentum, else empty.
    """

    def __init__(self, settings: PFedLASettings, layers: int) -> None:
        self.settings = settings
        self.layers = layers
        self.head: str = settings.head
        self.params: Params = {}
        self.velocity: Params = {}

    def add(self, generators: Sequence[torch.Generator]) -> None:
        """Give new clients fresh hypernetworks, and every client a logit for each of them.

        Args:
            generators: one for each new client; its draws depend on nothing else.
        """
        known = len(self.params["embedding"]) if self.params else 0
        total = known + len(generators)
        if self.head == "auto":
            self.head = "dense" if total <= DENSE_CLIENTS else "factorised"
            if self.head == "factorised":
                log.warning("factorised heads, which are not of the paper, for %s clients: see pfedla.head", total)
        elif self.settings.head == "auto" and self.head == "dense" and known <= DENSE_CLIENTS < total:
            log.warning('%s clients are many for dense heads; a run with pfedla.head="factorised" takes less', total)
        grown: Params = {}
        for place, generator in enumerate(generators, known):
            for name, tensor in self._fresh(total, place, known, generator).items():
                if name not in grown:
                    grown[name] = enlarged(self.params.get(name), (total, *tensor.shape), tensor)
                grown[name][place] = tensor
            if known and self.head == "dense" and self.settings.normaliser == "relu-sum":
                column = grown["heads.weight"][:known, :, place]  # a logit of 0 would never be left
                column.copy_(torch.rand(column.shape, generator=generator))
        if self.settings.hypernetwork_momentum:
            self.velocity = {n: enlarged(self.velocity.get(n), tensor.shape, tensor) for n, tensor in grown.items()}
        self.params = grown

    def _fresh(self, peers: int, own: int, known: int, generator: torch.Generator) -> Params:
        """One client's embedding (standard normal) and hypernetwork, hidden layers as torch's `Linear` starts them."""
        settings, params = self.settings, {"embedding": torch.randn(self.settings.embedding_dim, generator=generator)}
        width = settings.embedding_dim
        for k in range(settings.hidden_layers):
            params[f"hidden.{k}.weight"] = uniform((settings.hidden_dim, width), width, generator)
            params[f"hidden.{k}.bias"] = uniform((settings.hidden_dim,), width, generator)
            width = settings.hidden_dim
        rank, dense, positive = settings.head_rank, self.head == "dense", settings.normaliser == "relu-sum"
        size, place = (peers, own) if dense else (rank + 1, rank)
        shape = (self.layers, size, width)
        params["heads.weight"] = torch.rand(shape, generator=generator) if positive else torch.zeros(shape)
        params["heads.bias"] = torch.zeros(self.layers, size)
        params["heads.bias"][:, place] = settings.self_bias
        if not dense:
            drawn = (torch.rand if positive else torch.randn)(self.layers, rank, generator=generator)
            params[PEERS] = (drawn + 0.5) / rank if positive else drawn / math.sqrt(rank)
            if known and own >= rank and not positive:  # fewer than r peers that are not 0 would not span R^r
                params[PEERS].zero_()
        return params

    def logits(self, rows: Tensor) -> Tensor:
        """R1: s_i^l in R^N for some clients."""
        return self._logits(outputs({name: self.params[name][rows] for name in self._own()}), rows)

    def step(self, rows: Tensor, gradient: Tensor) -> None:
        """R7: descend along a gradient with respect to the logits.

        No other client's tensors change, but the embeddings of peers, along the clients' sum. A client whose step
        leads to numbers that are not finite does not take it, nor adds to the sum, unless it happens to most.

        Args:
            rows: of the clients, each once.
            gradient: of the surrogate with respect to their logits.

        Raises:
            UserError: it happens to most clients; those of them that were looked at keep theirs.
        """
        diverged, peers = 0, self.params.get(PEERS)
        total = None if peers is None else torch.zeros(peers.shape, dtype=gradient.dtype)
        for some, slope in zip(torch.split(rows, SLAB), torch.split(gradient, SLAB), strict=True):
            if peers is None or total is None:
                diverged += int((~self._descend(some, slope)).sum())
                continue
            before = outputs({name: self.params[name][some] for name in self._own()}).to(slope)
            good = self._descend(some, outputs_gradient(slope, peers.to(slope), some))
            total += columns_gradient(slope[good], before[good], some[good])
            diverged += int((~good).sum())
        if 2 * diverged > len(rows):
            rate = self.settings.hypernetwork_learning_rate
            raise UserError(f"the hypernetworks diverged: lower pfedla.hypernetwork-learning-rate={rate:g}")
        if diverged:
            log.warning("the hypernetworks of %s clients would have diverged, and stay as they were", diverged)
        if total is not None:
            self._descend_peers(rows, total)

    def _descend(self, some: Tensor, slope: Tensor) -> Tensor:
        """One step of some clients along the gradient of their heads' outputs; who took it: bool [n]."""
        names = self._own()
        mine = [self.params[name][some].requires_grad_() for name in names]
        with torch.enable_grad():
            out = outputs(dict(zip(names, mine, strict=True)))
            # Of a scalar: to be given a gradient to start from, torch imports hundreds of modules first.
            surrogate = (out * slope.to(out)).sum()
        # Without hidden layers or with heads of zero, some tensors have a gradient of zero and none is unused.
        slopes = torch.autograd.grad(surrogate, mine)
        momenta: list[Tensor | None] = [self.velocity[name][some] if self.velocity else None for name in names]
        with torch.no_grad():
            self._momentum_step(mine, slopes, momenta)
            after = self._logits(outputs(dict(zip(names, mine, strict=True))), some)
            seen = [after, *mine, *(v for v in momenta if v is not None)]
            good = torch.stack([finite_rows(tensor) for tensor in seen]).all(0)
            for name, tensor, velocity in zip(names, mine, momenta, strict=True):
                self.params[name][some[good]] = tensor[good]
                if self.velocity and velocity is not None:
                    self.velocity[name][some[good]] = velocity[good]
        return good

    def _descend_peers(self, rows: Tensor, slope: Tensor) -> None:
        """One step of the embeddings of peers, if it leads to numbers that are finite."""
        parts = [part for part in (self.params, self.velocity) if part]
        before = [part[PEERS] for part in parts]
        after = [tensor.clone() for tensor in before]
        self._momentum_step(after[:1], [slope.to(after[0])], [*after[1:]] or [None])
        for part, tensor in zip(parts, after, strict=True):
            part[PEERS] = tensor
        if not all(all_finite(tensor) for tensor in (*after, *map(self.logits, torch.split(rows, SLAB)))):
            for part, tensor in zip(parts, before, strict=True):
                part[PEERS] = tensor
            log.warning("the embeddings of peers would have diverged, and stay as they were")

    def _momentum_step(self, params: list[Tensor], slopes: Sequence[Tensor], momenta: list[Tensor | None]) -> None:
        rate, momentum = self.settings.hypernetwork_learning_rate, self.settings.hypernetwork_momentum
        momentum_step(params, slopes, momenta, rate=rate, momentum=momentum)

    def _own(self) -> list[str]:
        """Names of the tensors that belong to one client each."""
        return [name for name in self.params if name != PEERS]

    def _logits(self, given: Tensor, rows: Tensor) -> Tensor:
        """What the heads' outputs of some clients make of all peers: [n, L, N]."""
        peers = self.params.get(PEERS)
        return given if peers is None else pair_scores(given, peers, rows)


def stored_head(peers: Tensor | None, settings: PFedLASettings) -> str:
    """Which head a server's state has.

    Args:
        peers: the embeddings of peers in it; None if it has none.
        settings: the method's.

    Raises:
        ValueError: these settings ask for another head, or another rank.
    """
    head, rank = ("dense", settings.head_rank) if peers is None else ("factorised", peers.shape[-1])
    if settings.head not in ("auto", head) or rank != settings.head_rank:
        wanted = f'pfedla.head="{settings.head}" with pfedla.head-rank={settings.head_rank}'
        raise ValueError(f"the state has {head} heads of rank {rank}, and the settings ask for {wanted}")
    return head
