"""Layers with weights, caught as a network calls them, and carried out client by client.

One whose weights are fixed, and so are everybody's, takes the samples of all clients as one batch, as it is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from fedham_flwr.models import kernels
from fedham_flwr.training.engine import layers

LOOKS = (
    torch.Tensor.__bool__,
    torch.Tensor.item,
    torch.Tensor.tolist,
    torch.Tensor.numpy,
    torch.Tensor.__float__,
    torch.Tensor.__int__,
)
"""What a network does to decide by a value: one client's would decide for all."""


class NotStackableError(Exception):
    """A network that cannot be run for many clients at once; the reason, as a clause."""


class Folded(TorchFunctionMode):
    """Carries out layers that have weights client by client.

    Args:
        clients: m.
        real: float32 [m, b], see `layers.batch_norm`.
        draws: a generator for each client, for what is drawn, such as dropout; None where nothing is.
        sizes: how many samples each client has in the batch.
    """

    def __init__(
        self,
        clients: int,
        real: Tensor | None,
        draws: Sequence[torch.Generator] | None,
        sizes: Sequence[int] | None,
    ) -> None:
        super().__init__()
        self._clients, self._real, self._draws, self._sizes = clients, real, draws, sizes

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        layer = _LAYERS.get(func)
        if layer is not None and not _everybodys(func, *args, **kwargs):
            return layer(self, *args, **kwargs)
        if func in LOOKS:
            raise NotStackableError("it decides by a value of its input or weights")
        return func(*args, **kwargs)

    def batch_norm(
        self,
        x: Tensor,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        training: bool = False,
        momentum: float | None = 0.1,
        eps: float = 1e-5,
    ) -> Tensor:
        """Torch's, client by client; arguments as torch's."""
        if momentum is None:
            raise NotStackableError("its batch normalisation has no momentum")
        if training and running_mean is None:
            momentum = 0.0
        return layers.batch_norm(
            x, running_mean, running_var, weight, bias, training, momentum, eps, self._clients, self._real
        )

    def layer_norm(
        self,
        x: Tensor,
        normalized_shape: list[int],
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        eps: float = 1e-5,
    ) -> Tensor:
        """Torch's, client by client; arguments as torch's."""
        normed = functional.layer_norm(x, normalized_shape, None, None, eps)
        return layers.affine(normed, weight, bias, self._clients, channels=False)

    def group_norm(
        self,
        x: Tensor,
        num_groups: int,
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        eps: float = 1e-5,
    ) -> Tensor:
        """Torch's, client by client; arguments as torch's."""
        normed = functional.group_norm(x, num_groups, None, None, eps)
        return layers.affine(normed, weight, bias, self._clients, channels=True)

    def embedding(
        self,
        index: Tensor,
        weight: Tensor,
        padding_idx: int | None = None,
        max_norm: float | None = None,
        norm_type: float = 2.0,
        scale_grad_by_freq: bool = False,
        sparse: bool = False,
    ) -> Tensor:
        """Torch's, client by client; arguments as torch's."""
        del norm_type
        if max_norm is not None or padding_idx is not None or scale_grad_by_freq or sparse:
            raise NotStackableError("its embedding has options beyond the table")
        return layers.embedding(index, weight)

    def dropout(self, x: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
        """Torch's, client by client; arguments as torch's."""
        del inplace

        def keep(part: Tensor, draw: torch.Generator | None) -> Tensor:
            # One at a time, images lie in channels_last memory, and are drawn for in that order.
            order = torch.channels_last if part.dim() == 4 else torch.contiguous_format
            return torch.empty_like(part, memory_format=order).bernoulli_(1 - p, generator=draw)

        kept = self.drawn(x, keep) if training and p else None
        return x if kept is None else x * kept.div_(1 - p)

    def drawn(self, x: Tensor, make: kernels.Make) -> Tensor | None:
        """Random numbers that each client draws for itself, as it would alone; None in a trial."""
        if self._draws is None:
            return None
        parts = x.chunk(self._clients)
        sizes = self._sizes or [len(part) for part in parts]
        found = torch.zeros_like(x)
        for mine, part, size, draw in zip(found.chunk(self._clients), parts, sizes, self._draws, strict=True):
            mine[:size] = make(part[:size].detach(), draw)
        return found

    def linear(self, *args: Any, **kwargs: Any) -> Tensor:
        """Torch's, client by client; arguments as torch's."""
        return layers.linear(*args, **kwargs)

    def conv1d(self, *args: Any, **kwargs: Any) -> Tensor:
        """Torch's, client by client; arguments as torch's."""
        return layers.conv1d(*args, **kwargs)

    def conv2d(self, *args: Any, **kwargs: Any) -> Tensor:
        """Torch's, client by client; arguments as torch's."""
        return layers.conv2d(*args, **kwargs)


def _everybodys(func: Any, _x: Tensor, *args: Any, **kwargs: Any) -> bool:
    """Whether the weights that a layer is called with are fixed, and not a stack with one of each client."""
    place, name, dimensions = _WEIGHTS.get(func, (0, "", 0))
    if not name:
        return False
    weight = args[place] if len(args) > place else kwargs.get(name)
    if func is functional.layer_norm:
        dimensions = len(args[0] if args else kwargs["normalized_shape"])
    if weight is None or weight.dim() != dimensions:
        return False
    if func is functional.batch_norm and (args[4] if len(args) > 4 else kwargs.get("training")):
        raise NotStackableError("its batch normalisation has fixed statistics, and is trained")
    return True


_WEIGHTS: Mapping[Any, tuple[int, str, int]] = {
    functional.linear: (0, "weight", 2),
    functional.conv1d: (0, "weight", 3),
    functional.conv2d: (0, "weight", 4),
    functional.batch_norm: (0, "running_mean", 1),
    functional.layer_norm: (1, "weight", 0),
    functional.group_norm: (1, "weight", 1),
    functional.embedding: (0, "weight", 2),
}
"""Of each layer with weights, behind its input: place and name of one, and its dimensions where it is not stacked."""
_LAYERS: Mapping[Any, Any] = {
    functional.linear: Folded.linear,
    functional.conv1d: Folded.conv1d,
    functional.conv2d: Folded.conv2d,
    functional.batch_norm: Folded.batch_norm,
    functional.layer_norm: Folded.layer_norm,
    functional.group_norm: Folded.group_norm,
    functional.embedding: Folded.embedding,
    functional.dropout: Folded.dropout,
}
