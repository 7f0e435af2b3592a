"""Networks and clients for tests of many clients at once, and both ways to train them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from fedham_flwr.core.parameters import Params
from fedham_flwr.data.batches import Kind
from fedham_flwr.models.char_transformer import CharTransformer, CharTransformerSettings
from fedham_flwr.models.cnn import DigitsCNN
from fedham_flwr.models.grafts import GraftSettings
from fedham_flwr.models.grouping import manifest_of
from fedham_flwr.models.lenet import LeNet, LeNetBN
from fedham_flwr.models.mlp import MLP
from fedham_flwr.models.vit import ViT, ViTSettings
from fedham_flwr.training.engine.cohort import CohortTrainer, run_together
from fedham_flwr.training.engine.engine import Engine
from fedham_flwr.training.local import LocalTraining
from fedham_flwr.training.trainer import Trainer

CPU = torch.device("cpu")
PLAIN = LocalTraining(2, 8, 0.05, 0.0, 0.0, augment=False)
TEXT = (6,)
"""The shape of the one kind of sample that is a text."""
MOMENTUM = dataclasses.replace(PLAIN, momentum=0.9, weight_decay=0.01)
TIGHT, LOOSE = 1e-10, 5e-5
"""Relative, of a whole tensor, in float64 and in float32, after one round."""


class Everything(nn.Module):
    """Layers that the built-in networks do not have: group and layer normalisation, dropout, a grouped convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 8, 3, padding=1, stride=2)
        self.norm = nn.GroupNorm(2, 8)
        self.deep = nn.Conv2d(8, 8, 3, padding=1, groups=4, bias=False)
        self.drop = nn.Dropout(0.3)
        self.layer = nn.LayerNorm(32)
        self.head = nn.Linear(32, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.conv(x)))
        x = self.drop(torch.tanh(self.deep(x)))
        return self.head(self.layer(nn.functional.max_pool2d(x, 2).flatten(1)))


class Words(nn.Module):
    """An embedding, and its mean."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(11, 6)
        self.head = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.words(x).mean(1))


class Scaled(nn.Module):
    """A parameter that no layer of torch's has, so that only `torch.func` can stack it."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(5, 4)
        self.gain = nn.Parameter(torch.ones(4))

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x) * self.gain


class Deciding(nn.Module):
    """Looks at its input to decide what to do."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(5, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x) if bool(x.sum() > 0) else -self.linear(x)


def grafted(insertion: Literal["identity", "plain"]) -> nn.Module:
    """A convolutional network with a CBAM."""
    model = DigitsCNN((1, 8, 8), 4)
    model.graft(GraftSettings("cbam", reduction=4, insertion=insertion))
    return model


VIT = ViTSettings(width=8, depth=2, heads=2, head_dim=4, hidden_dim=16, dropout=0.2, patch_size=4, positions="learned")
CHARACTERS = CharTransformerSettings(width=8, depth=2, heads=2, head_dim=4, hidden_dim=16, dropout=0.2)
NETWORKS: Mapping[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "mlp": (lambda: MLP((2, 3), 4), (2, 3)),
    "digits-cnn": (lambda: DigitsCNN((1, 8, 8), 4), (1, 8, 8)),
    "lenet": (lambda: LeNet((3, 16, 16), 4), (3, 16, 16)),
    "lenet-bn": (lambda: LeNetBN((1, 16, 16), 4), (1, 16, 16)),
    "cbam": (lambda: grafted("identity"), (1, 8, 8)),
    "cbam-plain": (lambda: grafted("plain"), (1, 8, 8)),
    "vit": (lambda: ViT((1, 8, 8), 4, VIT), (1, 8, 8)),
    "char-transformer": (lambda: CharTransformer((6,), 9, CHARACTERS), (6,)),
    "everything": (Everything, (1, 8, 8)),
    "scaled": (Scaled, (5,)),
    "deciding": (Deciding, (5,)),
}


@dataclass
class Data:
    """A client's samples, in float64 where the network is."""

    features: Tensor
    labels: Tensor
    splits: Mapping[str, Tensor]
    kind: Kind = "array"


def dealt(shape: tuple[int, ...], sizes: list[int], dtype: torch.dtype = torch.float64, seed: int = 0) -> list[Data]:
    """Clients with so many training samples each, all in the same two tensors."""
    draw = torch.Generator().manual_seed(seed)
    total = sum(sizes)
    features = torch.randn(total, *shape, generator=draw, dtype=torch.float64).to(dtype)
    if shape == TEXT:
        features = torch.randint(0, 9, (total, shape[0] + 1), generator=draw, dtype=torch.uint8)
    labels = torch.randint(0, 4, (total,), generator=draw)
    parts = torch.randperm(total, generator=draw).split(sizes)
    kind: Kind = "text" if shape == TEXT else "array"
    return [Data(features, labels, {"train": part, "test": part}, kind) for part in parts]


def trainer(make: Callable[[], nn.Module], shape: tuple[int, ...], dtype: torch.dtype, precision: str = "fp32") -> Any:
    """A trainer and an engine of the same network."""
    torch.manual_seed(0)
    model = make().to(dtype)
    inputs = torch.zeros(2, *shape, dtype=torch.int64 if shape == TEXT else dtype)
    alone = Trainer(model, CPU, precision, manifest_of(model, [inputs]))
    return alone, Engine(alone, model, [inputs])


def models(alone: Trainer, count: int) -> list[Params]:
    """Different models to start from."""
    draw = torch.Generator().manual_seed(5)
    return [
        {n: t + 0.1 * torch.rand(t.shape, generator=draw, dtype=t.dtype) for n, t in alone.initial.items()}
        for _ in range(count)
    ]


def stream(place: int) -> torch.Generator:
    return torch.Generator().manual_seed(100 + place)


def far(mine: Params, theirs: Params) -> float:
    """The largest relative distance of a tensor; one that is nearly 0 beside the others is measured by those."""
    assert mine.keys() == theirs.keys()
    whole = max(t.norm().item() for t in theirs.values())
    return max((mine[n] - t).norm().item() / max(t.norm().item(), 1e-3 * whole) for n, t in theirs.items())


def one_at_a_time(alone: Trainer, starts: list[Params], data: list[Data], training: LocalTraining, **given: Any) -> Any:
    found = []
    for place, (start, samples) in enumerate(zip(starts, data, strict=True)):
        alone.load(start)
        mean = alone.fit(samples, training, stream(place), **{k: v[place] for k, v in given.items()})
        found.append((alone.read(alone.manifest.names()), mean))
    return found


def together(engine: Engine, starts: list[Params], data: list[Data], training: LocalTraining, **given: Any) -> Any:
    def task(place: int) -> Any:
        view = CohortTrainer(engine)
        view.load(starts[place])
        mean = view.fit(data[place], training, stream(place), **{k: v[place] for k, v in given.items()})
        return view.read_checked(), mean

    return run_together([lambda place=place: task(place) for place in range(len(data))])  # type: ignore[misc]
