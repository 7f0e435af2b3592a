"""The networks of the published settings that are not among the project's, from what their sources say of them.

Images arrive in -1..1, the rest as sources.py gives it.
"""

from __future__ import annotations

import itertools
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.functional import max_pool2d, relu


def digits(x: Tensor) -> Tensor:
    """-1..1 to the usual standardisation of MNIST, [b, 784]."""
    return (((x + 1) / 2 - 0.1307) / 0.3081).flatten(1)


class Logistic(nn.Module):
    """pFedMe, convex: logistic regression, on what `sources.twodigits` gives."""

    def __init__(self, shape: Any, outputs: int) -> None:
        super().__init__()
        self.linear = nn.Linear(784, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Logits [b, K]."""
        logits: Tensor = self.linear(x)
        return logits


class HiddenLayer(nn.Module):
    """shaoxiongji/federated-learning: 784, 200 with dropout, 10."""

    def __init__(self, shape: Any, outputs: int) -> None:
        super().__init__()
        self.hidden, self.dropout, self.output = nn.Linear(784, 200), nn.Dropout(), nn.Linear(200, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Logits [b, K]."""
        logits: Tensor = self.output(relu(self.dropout(self.hidden(digits(x)))))
        return logits


class Probabilities(nn.Module):
    """LG-FedAvg, MNIST: 784, 512, 256, 256, 128, 10; as there it gives probabilities, into the cross-entropy.

    Args:
        shape: of an image.
        outputs: classes.
        first: a file with the model of a run's server, from which to begin; empty: from random numbers.
    """

    def __init__(self, shape: Any, outputs: int, first: str = "") -> None:
        super().__init__()
        sizes = itertools.pairwise([784, 512, 256, 256, 128, outputs])
        self.layers = nn.ModuleList(nn.Linear(before, after) for before, after in sizes)
        if first:
            self.load_state_dict({name.rpartition("/")[2]: tensor for name, tensor in load_file(first).items()})

    def forward(self, x: Tensor) -> Tensor:
        """Probabilities [b, K]."""
        x = digits(x)
        for layer in self.layers[:-1]:
            x = relu(layer(x))
        logits: Tensor = self.layers[-1](x)
        return logits.softmax(1)


class Convolutions(nn.Module):
    """Two 5 x 5 convolutions of 6 and 16 channels, each with pooling, and layers of 120, `last` and K.

    Args:
        shape: of an image, [C, H, H].
        outputs: K.
        last: 0 leaves the layer before the last out.
        imagenet: colours standardised by ImageNet's means and deviations.
    """

    def __init__(self, shape: Any, outputs: int, last: int = 100, imagenet: bool = False) -> None:
        super().__init__()
        side = ((shape[1] - 4) // 2 - 4) // 2
        self.conv1, self.conv2 = nn.Conv2d(shape[0], 6, 5), nn.Conv2d(6, 16, 5)
        sizes = [16 * side * side, 120, *([last] if last else []), outputs]
        self.linear = nn.ModuleList(nn.Linear(before, after) for before, after in itertools.pairwise(sizes))
        self._imagenet = imagenet

    def forward(self, x: Tensor) -> Tensor:
        """Logits [b, K]."""
        if self._imagenet:
            mean, std = (x.new_tensor(v).view(3, 1, 1) for v in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
            x = ((x + 1) / 2 - mean) / std
        x = max_pool2d(relu(self.conv1(x)), 2)
        x = max_pool2d(relu(self.conv2(x)), 2).flatten(1)
        for layer in self.linear[:-1]:
            x = relu(layer(x))
        logits: Tensor = self.linear[-1](x)
        return logits


class OneOutput(nn.Module):
    """FLamby, heart disease: logistic regression with one output z; the logits (0, z) are the same descent."""

    def __init__(self, shape: Any, outputs: int) -> None:
        super().__init__()
        self.linear = nn.Linear(shape[-1], 1)

    def forward(self, x: Tensor) -> Tensor:
        """Logits [b, 2]."""
        z = self.linear(x)
        return torch.cat([torch.zeros_like(z), z], 1)
