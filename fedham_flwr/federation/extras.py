"""What a server half checks of the tensors that clients send beside a model."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from fedham_flwr.core.parameters import Params, all_finite

MOST = 1e6
"""Length beyond which a tensor of a method's own is refused by default. Features of a network that trains are near 1,
and sums of products of two such tensors are still exact enough in float64."""


def check_tensors(tensors: Params, wanted: Mapping[str, tuple[int, ...]], most: float = MOST) -> None:
    """Refuse tensors that are not exactly those wanted, float32, finite and of a length that can be.

    Args:
        tensors: as a client sent them.
        wanted: name -> shape; nothing if it may send none.
        most: the longest that a tensor may be, as an L2 norm.

    Raises:
        ValueError: the first fault.
    """
    if tensors.keys() != wanted.keys():
        raise ValueError(f"tensors other than the model's are {sorted(tensors)}, wanted {sorted(wanted)}")
    for name, shape in wanted.items():
        tensor = tensors[name]
        if tensor.dtype != torch.float32 or tuple(tensor.shape) != shape:
            raise ValueError(f"{name} is {tensor.dtype} {tuple(tensor.shape)}, wanted torch.float32 {shape}")
        if not all_finite(tensor):
            raise ValueError(f"{name} holds NaN or infinity")
        if not float(torch.linalg.vector_norm(tensor.double())) <= most:
            raise ValueError(f"{name} has a norm above {most:g}")
