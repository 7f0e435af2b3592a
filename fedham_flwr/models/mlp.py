"""A network for tables. Shape letters: b batch, g values and gaps, f numbers of a row, k classes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

from annotated_types import Ge, Gt
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import relu

from fedham_flwr.core.parameters import LayerGroup, module_group
from fedham_flwr.models.network import Network


@dataclass(frozen=True)
class MLPSettings:
    """Settings under `mlp.`.

    Attributes:
        width: of a hidden layer.
        depth: number of hidden layers; 0: logistic regression.
    """

    width: Annotated[int, Gt(0)] = 64
    depth: Annotated[int, Ge(0)] = 2


class MLP(Network):
    """fc1, fc2, ..., head: hidden layers with ReLU, and a linear one, over the values of a row and where it has gaps.

    6,018 parameters for 13 columns and 2 classes with the default settings.

    Args:
        shape: (2, F).
        outputs: of the head.
        settings: its own.
    """

    kinds: ClassVar[tuple[str, ...]] = ("table", "series")
    Settings: ClassVar[type | None] = MLPSettings

    def __init__(self, shape: tuple[int, ...], outputs: int, settings: MLPSettings = MLPSettings()) -> None:
        super().__init__()
        self._hidden = tuple(f"fc{number + 1}" for number in range(settings.depth))
        size = shape[0] * shape[1]  # of series too, whose steps are then numbers like others
        for name in self._hidden:
            self.add_module(name, nn.Linear(size, settings.width))
            size = settings.width
        self.head = nn.Linear(size, outputs)

    def forward(self, x: Float[Tensor, "b g f"]) -> Float[Tensor, "b k"]:
        """Logits of a batch of rows, as `batches.with_gaps` makes them, or of series."""
        x = x.flatten(1)
        for name in self._hidden:
            x = relu(self.get_submodule(name)(x))
        logits: Tensor = self.head(x)
        return logits

    def layer_groups(self) -> Sequence[LayerGroup]:
        """One group for each layer."""
        return tuple(module_group(self, name) for name in (*self._hidden, "head"))
