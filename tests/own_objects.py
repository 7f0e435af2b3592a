"""Objects that tests name by their import path: a network, loaders, a partitioner, and some that are wrong."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fedham_flwr import AveragingStrategy, Method, Outcome, RoundClient, Split, Task, split_groups
from fedham_flwr.core.parameters import Manifest


@dataclass(frozen=True)
class WideSettings:
    width: int = 8


class Wide(nn.Module):
    """With a dataclass of settings."""

    Settings = WideSettings

    def __init__(self, shape: tuple[int, ...], outputs: int, settings: WideSettings) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(int(np.prod(shape)), settings.width), nn.ReLU())
        self.top = nn.Linear(settings.width, outputs)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.top(self.body(x))
        return logits


class Deciding(nn.Module):
    """Looks at its input to decide what to do."""

    def __init__(self, shape: tuple[int, ...], outputs: int) -> None:
        super().__init__()
        self.top = nn.Linear(int(np.prod(shape)), outputs)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.top(x.flatten(1))
        return -logits if bool(x.sum() > 1e9) else logits


def plain(shape: tuple[int, ...], outputs: int, depth: int = 1) -> nn.Module:
    """With a keyword parameter for a setting."""
    size = int(np.prod(shape))
    return nn.Sequential(nn.Flatten(), *(nn.Linear(size, size) for _ in range(depth)), nn.Linear(size, outputs))


def wrong_outputs(shape: tuple[int, ...]) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(int(np.prod(shape)), 3))


def no_module() -> str:
    return "a network"


def wants_more(shape: tuple[int, ...], outputs: int, colour: str) -> nn.Module:
    raise AssertionError((shape, outputs, colour))


def linear(shape: tuple[int, ...], outputs: int) -> nn.Module:
    return nn.Linear(shape[0], outputs)


def waves(client: int, clients: int, seed: int, count: int = 60) -> dict[str, Any]:
    """Windows of two kinds of waves [n, 2, 16]; each client has its own phase."""
    draw = np.random.default_rng([seed, client, clients])
    kinds = draw.integers(0, 2, count)
    phase = client / clients + draw.normal(0, 0.05, (count, 1))
    first = np.sin(2 * np.pi * (1 + 2 * kinds[:, None]) * np.linspace(0, 1, 16) + phase)
    inputs = np.stack([first, draw.normal(0, 0.1, first.shape)], axis=1).astype(np.float32)
    cut = count * 2 // 3
    return {"train": (inputs[:cut], kinds[:cut]), "test": (inputs[cut:], kinds[cut:])}


def words(client: int) -> tuple[Tensor, list[str]]:
    """One pair, with classes by name."""
    kinds = torch.arange(40) % 2
    x = torch.randn(40, 3, generator=torch.Generator().manual_seed(client)) + 5 * kinds[:, None]
    return x, ["no" if kind == 0 else "yes" for kind in kinds]


def slopes(client: int) -> dict[str, Any]:
    """Values [n, 2] that are linear in the inputs."""
    x = torch.randn(50, 4, generator=torch.Generator().manual_seed(client))
    y = x @ torch.tensor([[1.0, 0.0], [0.0, 2.0], [1.0, 1.0], [0.0, -1.0]])
    return {"train": (x[:40], y[:40]), "test": (x[40:], y[40:])}


def tags(client: int) -> dict[str, Any]:
    """Labels [n, 3], each by the sign of an input."""
    x = torch.randn(60, 3, generator=torch.Generator().manual_seed(client))
    return {"train": (x[:45], x[:45] > 0), "test": (x[45:], x[45:] > 0)}


def broken(fault: str = "") -> Any:
    x, y = torch.zeros(4, 3), torch.zeros(4, dtype=torch.int64)
    return {
        "": None,
        "lengths": {"train": (x, y[:3]), "test": (x, y)},
        "nan": {"train": (x / 0, y), "test": (x, y)},
        "no test": {"train": (x, y)},
        "split": {"train": (x, y), "test": (x, y), "dev": (x, y)},
        "shapes": {"train": (x, y), "test": (torch.zeros(4, 2), y)},
        "empty": {"train": (x[:0], y[:0]), "test": (x, y)},
        "ints": {"train": (x.long(), y), "test": (x.long(), y)},
    }[fault]


def failing(client: int) -> Any:
    raise OSError(f"no disk {client}")


def by_turns(labels: Any, clients: int) -> list[Any]:
    return [np.arange(client, len(labels), clients) for client in range(clients)]


def all_to_all(labels: Any, clients: int) -> list[Any]:
    return [np.arange(len(labels))] * clients


TASK = Task(build_model=plain, load_data=waves)
NOTHING = Task()
NUMBER = 3


def inverted(batch: Tensor) -> Tensor:
    """An augmentation."""
    return 1 - batch


class Darker:
    """An augmentation with a setting."""

    def __init__(self, factor: float = 0.5) -> None:
        self.factor = factor

    def __call__(self, batch: Tensor) -> Tensor:
        return batch * self.factor


def cut(batch: Tensor) -> Tensor:
    return batch[:, :, 1:]


def two_at_a_time(batch: Tensor, other: Tensor) -> Tensor:
    return batch + other


MADE = Wide((1, 8, 8), 10, WideSettings())


def boom(shape: tuple[int, ...], outputs: int) -> nn.Module:
    """A function of a user's that fails.

    Raises:
        ValueError: always.
    """
    raise ValueError(f"a fault of mine\nwith {shape} and {outputs}")


def no_split(manifest: Manifest, settings: object) -> Any:
    return ["conv1"]


def no_such_group(manifest: Manifest, settings: object) -> Split:
    return split_groups(manifest, ("bn1",))


def last(manifest: Manifest, settings: object) -> Split:
    return split_groups(manifest, manifest.group_names[-1:])


class Careless(RoundClient):
    """Returns the model in place of an outcome."""

    def train(self, start: Any) -> Any:
        return self.fit(start)


class Misnamed(RoundClient):
    """Trains what there is not."""

    def train(self, start: Any) -> Outcome:
        return self.outcome(self.fit(start, only=["head"]))


class Broken(RoundClient):
    """Has a slip of the pen."""

    def train(self, start: Any) -> Outcome:
        return self.outcome(self.fitt(start))  # type: ignore[attr-defined]


NO_SPLIT = Method(AveragingStrategy, RoundClient, no_split)
NO_GROUP = Method(AveragingStrategy, RoundClient, no_such_group)
CARELESS = Method(AveragingStrategy, Careless, last)
MISNAMED = Method(AveragingStrategy, Misnamed, last)
BROKEN = Method(AveragingStrategy, Broken, last)
