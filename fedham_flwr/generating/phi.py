"""phi, the parameters of the hypernetwork: names, shapes and first values; and the settings that methods give it.

Shape letters: T target tensors of P_t scalars, d embedding, h hidden width, r rank.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from fedham_flwr.algorithms.fedtp import FedTPSettings
from fedham_flwr.algorithms.pfedhn import PFedHNSettings
from fedham_flwr.core.parameters import empty

HyperSettings = FedTPSettings | PFedHNSettings
"""A method's own, of which rank, sizes, rates, momentum, weight decay and the name of its section count here."""
REACH = 2.0
"""Length of what goes into a factorised head. How far a step moves what is generated grows with its square: where it is
free to grow, as in dense heads, training that went well diverges after some rounds. Directions tell clients apart."""
HEAD = "heads."
"""How the names begin of tensors that are too large for a graph."""


def shapes(settings: HyperSettings, sizes: Sequence[int]) -> dict[str, tuple[int, ...]]:
    """Names and shapes of phi.

    Args:
        settings: the method's settings.
        sizes: P_t, scalars of each target tensor.
    """
    found: dict[str, tuple[int, ...]] = {}
    for k in range(settings.hidden_layers + 1):
        found[f"hidden.{k}.weight"] = (settings.hidden_dim, settings.hidden_dim if k else settings.embedding_dim)
        found[f"hidden.{k}.bias"] = (settings.hidden_dim,)
    for number, size in enumerate(sizes):
        if settings.rank:
            found[f"mixers.{number}"] = (settings.rank, settings.hidden_dim)
        found[f"{HEAD}{number}.weight"] = (size, settings.rank or settings.hidden_dim)
        found[f"{HEAD}{number}.bias"] = (size,)
    return found


def first_values(name: str, shape: tuple[int, ...], settings: HyperSettings, generator: torch.Generator) -> Tensor:
    """First values as torch's `Linear` has them, of h inputs; mixers are a random projection.

    Factorised heads are smaller by as much as their inputs are longer, so that what is generated at first differs from
    the model's own tensors about as much as with dense heads.
    """
    bound = 1 / math.sqrt(settings.embedding_dim if name.startswith("hidden.0.") else settings.hidden_dim)
    if settings.rank and name.startswith(HEAD):
        bound /= REACH
    return empty(shape, torch.empty(0)).uniform_(-bound, bound, generator=generator)
