"""The hypernetwork on the server: the tensors it generates for clients, and how it learns from their training.

Shape letters: n clients of a cohort, N clients in all, T target tensors of P_t scalars, d embedding, h hidden width,
r rank. h(z; phi) is linear layers with ReLU between them (the trunk) and a linear head for each target tensor, which
has nearly all of phi. The heads' gradient is an outer product of n terms; it is never made. A step reads the heads once
for the gradient with respect to what goes into them, and goes through them and their momentum once more, in slabs that
stay in the processor's cache. No graph covers the heads or lives from one call to the next.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor
from torch.nn.functional import linear, normalize, relu

from fedham_flwr.core.errors import UserError
from fedham_flwr.core.parameters import Params, all_finite, empty
from fedham_flwr.core.threads import in_threads, one_thread
from fedham_flwr.generating.embeddings import sgd_step
from fedham_flwr.generating.phi import HEAD, REACH, HyperSettings, first_values, shapes

ROWS = 4096
"""Of a head in one slab: 2.5 MB at the paper's width of 150, and with its momentum twice as much."""
LANES = 16
"""Parts that the slabs are dealt to, so that as many threads can take part: a part of its own for each costs more."""

Result = TypeVar("Result")


class Slab(NamedTuple):
    """Some rows of one head."""

    target: int
    rows: slice


class Slopes(NamedTuple):
    """What the n clients' gradients with respect to their tensors become on the way back."""

    targets: list[Tensor]  # T times [n, P_t], the gradients themselves
    codes: list[Tensor]  # T times [n, h or r], what went into the heads
    embeddings: Tensor  # [n, d]
    trunk: Params  # of phi without the heads


class Generator:
    """h(z; phi), the hypernetwork, with its optimiser's state.

    Args:
        settings: the method's settings.
        base: the model's own first values of the target tensors: their names, shapes and order, and with a rank also
            where generated tensors start from.
        generator: for the first values of phi.
        device: where phi is; on the CPU results do not depend on the number of threads.

    Attributes:
        params: hidden.k.weight [h, d or h] and hidden.k.bias [h]; for every target t heads.t.weight [P_t, h] and
            heads.t.bias [P_t], or with a rank mixers.t [r, h], heads.t.weight [P_t, r] and heads.t.bias [P_t].
        velocity: as params with momentum, else empty.
    """

    def __init__(
        self, settings: HyperSettings, base: Mapping[str, Tensor], generator: torch.Generator, device: torch.device
    ) -> None:
        self.settings = settings
        self.device = device
        self.params: Params = {}
        self._shapes = {name: tuple(tensor.shape) for name, tensor in base.items()}
        for name, shape in shapes(settings, [tensor.numel() for tensor in base.values()]).items():
            self.params[name] = first_values(name, shape, settings, generator).to(device)
        if settings.rank:
            for number, tensor in enumerate(base.values()):
                self.params[f"{HEAD}{number}.bias"].copy_(tensor.reshape(-1))
        self.velocity: Params = {}
        if settings.momentum:
            self.velocity = {name: empty(tensor.shape, tensor).zero_() for name, tensor in self.params.items()}

    def generate(self, z: Tensor) -> list[Params]:
        """W_i = h(z_i; phi).

        Args:
            z: embeddings [n, d].

        Returns:
            For each client the tensors by name, on the CPU; views of one array per target.

        Raises:
            UserError: some of it is not finite.
        """
        with torch.no_grad(), one_thread():
            codes = self._codes(z.to(self._like), self.params)
        made = [empty((len(z), math.prod(shape)), self._like) for shape in self._shapes.values()]

        def fill(slab: Slab) -> None:
            weight, bias = self._head(self.params, slab)
            made[slab.target][:, slab.rows] = torch.addmm(bias, codes[slab.target], weight.T)

        self._each(fill)
        if not all(map(all_finite, made)):
            raise _diverged(self.settings)
        named = {
            name: out.cpu().view(-1, *shape) for out, (name, shape) in zip(made, self._shapes.items(), strict=True)
        }
        return [{name: tensor[client] for name, tensor in named.items()} for client in range(len(z))]

    def step(self, z: Tensor, slopes: Mapping[str, Tensor]) -> Tensor:
        """A step of SGD for phi along (d h(z; phi) / d phi)^T slopes.

        Args:
            z: embeddings [n, d] that the clients' tensors were generated from.
            slopes: name -> [n, ...], the weighted W_i - Wt_i of each client.

        Returns:
            The gradient with respect to the embeddings, at phi before the step: [n, d].

        Raises:
            UserError: the gradient or the new trunk is not finite; nothing is changed.
        """
        settings, found = self.settings, self._back(z, slopes)
        moved = {
            name: sgd_step(settings, settings.learning_rate, self.params[name], self.velocity.get(name), g)
            for name, g in found.trunk.items()
        }
        if not all(all_finite(weight) for weight, _ in moved.values()):
            raise _diverged(self.settings)
        for name, (weight, velocity) in moved.items():
            self.params[name].copy_(weight)
            if self.velocity:
                self.velocity[name].copy_(velocity)

        def descend(slab: Slab) -> None:
            slope, codes = found.targets[slab.target][:, slab.rows], found.codes[slab.target]
            head = self._head(self.params, slab)
            if self.velocity:
                weight, bias = self._head(self.velocity, slab)
                ahead = (
                    weight.addmm_(slope.T, codes, beta=settings.momentum),
                    bias.mul_(settings.momentum).add_(slope.sum(0)),
                )
            else:
                ahead = slope.T @ codes, slope.sum(0)
            for tensor, direction in zip(head, ahead, strict=True):
                direction.add_(tensor, alpha=settings.weight_decay)
                tensor.add_(direction, alpha=-settings.learning_rate)

        self._each(descend)
        return found.embeddings

    def slope(self, z: Tensor, slopes: Mapping[str, Tensor]) -> Tensor:
        """For the embeddings alone: (d h(z; phi) / d z)^T slopes, [n, d]; phi does not change.

        Args:
            z: as in `step`.
            slopes: as in `step`.

        Raises:
            UserError: it is not finite.
        """
        return self._back(z, slopes).embeddings

    def length(self, z: Tensor, slopes: Mapping[str, Tensor]) -> float:
        """The L2 norm of the gradient with respect to phi and the embeddings together.

        A head's gradient is sum_i slope_i code_i^T, whose square is a sum over pairs of clients.

        Args:
            z: as in `step`.
            slopes: as in `step`.

        Raises:
            UserError: the gradient is not finite.
        """
        found = self._back(z, slopes)
        with one_thread():
            squares = [slope.square().sum() for slope in (found.embeddings, *found.trunk.values())]
            for slope, code in zip(found.targets, found.codes, strict=True):
                squares += [((slope @ slope.T) * (code @ code.T)).sum(), slope.sum(0).square().sum()]
        return math.sqrt(max(0.0, math.fsum(map(float, squares))))

    @property
    def _like(self) -> Tensor:
        """A tensor with phi's dtype and device."""
        return self.params["hidden.0.bias"]

    def _codes(self, z: Tensor, params: Mapping[str, Tensor]) -> list[Tensor]:
        """What goes into the heads: [n, h] T times, or [n, r] for each of T."""
        hidden = linear(z, params["hidden.0.weight"], params["hidden.0.bias"])
        for k in range(1, self.settings.hidden_layers + 1):
            hidden = linear(relu(hidden), params[f"hidden.{k}.weight"], params[f"hidden.{k}.bias"])
        if not self.settings.rank:
            return [hidden] * len(self._shapes)
        mixed = (linear(hidden, params[f"mixers.{t}"]) for t in range(len(self._shapes)))
        return [REACH * normalize(code, dim=1) for code in mixed]

    def _back(self, z: Tensor, slopes: Mapping[str, Tensor]) -> Slopes:
        """The vector-Jacobian product, but for the heads."""
        trunk = {name: t.detach().requires_grad_() for name, t in self.params.items() if not name.startswith(HEAD)}
        leaf = z.detach().to(self._like, copy=True).requires_grad_()
        with torch.enable_grad(), one_thread():
            codes = self._codes(leaf, trunk)
        flat = [slopes[name].flatten(1).to(self._like) for name in self._shapes]
        back = self._into_codes(flat, codes)
        with torch.enable_grad(), one_thread():
            # A scalar: for the gradient of anything else torch imports 500 modules first.
            inner = torch.stack([(code * slope).sum() for code, slope in zip(codes, back, strict=True)]).sum()
            gradients = torch.autograd.grad(inner, [leaf, *trunk.values()])
        # Whatever is not finite in the heads or in the slopes shows in the gradients.
        if not all(map(all_finite, [*codes, *gradients])):
            raise _diverged(self.settings)
        named = dict(zip(trunk, gradients[1:], strict=True))
        return Slopes(flat, [code.detach() for code in codes], gradients[0], named)

    def _into_codes(self, targets: Sequence[Tensor], codes: Sequence[Tensor]) -> list[Tensor]:
        """The gradient with respect to what went into each head, in sums whose order is fixed."""
        parts = self._each(lambda slab: targets[slab.target][:, slab.rows] @ self._head(self.params, slab)[0])
        sums = [torch.zeros_like(code, dtype=torch.float64) for code in codes]
        for slab, part in zip(self._slabs(), parts, strict=True):
            sums[slab.target] += part
        return [total.to(self._like) for total in sums]

    def _head(self, params: Mapping[str, Tensor], slab: Slab) -> tuple[Tensor, Tensor]:
        """Weight and bias of some rows of a head, or their velocities."""
        name = f"{HEAD}{slab.target}."
        return params[f"{name}weight"][slab.rows], params[f"{name}bias"][slab.rows]

    def _slabs(self) -> list[Slab]:
        sizes = list(map(math.prod, self._shapes.values()))
        if self.device.type != "cpu":
            return [Slab(t, slice(0, size)) for t, size in enumerate(sizes)]
        return [Slab(t, slice(a, min(a + ROWS, size))) for t, size in enumerate(sizes) for a in range(0, size, ROWS)]

    def _each(self, work: Callable[[Slab], Result]) -> list[Result]:
        """The work's results for all slabs, in their order."""
        slabs = self._slabs()
        if self.device.type != "cpu":
            return [work(slab) for slab in slabs]
        lanes = in_threads(lambda first: [work(slab) for slab in slabs[first::LANES]], range(LANES))
        return [lanes[at % LANES][at // LANES] for at in range(len(slabs))]


def _diverged(settings: HyperSettings) -> UserError:
    return UserError(f"the hypernetwork diverged: lower {settings.section}.learning-rate={settings.learning_rate:g}")
