"""Local training and evaluation: one SGD loop and one evaluation loop for every method.

Images stay uint8 in the memory-mapped data set; a batch is gathered by index and scaled when it is needed. Networks
run in channels_last. The optimiser is made anew for every call, so no momentum crosses a round.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim.sgd import sgd

from fedham_flwr import parameters
from fedham_flwr.data import augment, to_float
from fedham_flwr.errors import UserError
from fedham_flwr.parameters import Manifest, Params

EVALUATION_BATCH = 256
"""Larger batches leave the processor's caches and are slower."""

GradientHook = Callable[[Sequence[nn.Parameter]], None]
"""Called after each backward pass with the model's parameters, whose `.grad` it may change."""


class Samples(Protocol):
    """What training needs of a client's data (see `data.ClientData`)."""

    @property
    def features(self) -> Tensor:
        """uint8 [N, H, W, C], of the whole data set."""
        ...

    @property
    def labels(self) -> Tensor:
        """int64 [N]."""
        ...

    @property
    def splits(self) -> Mapping[str, Tensor]:
        """Split -> int64 [n], the client's sample numbers."""
        ...


@dataclass(frozen=True)
class LocalTraining:
    """How a client trains: the settings of the same names."""

    local_epochs: int
    batch_size: int
    learning_rate: float
    momentum: float
    weight_decay: float
    augment: bool

    def reach(self, samples: int) -> float:
        """How far a constant gradient of length one would carry a model, momentum's run-up left aside.

        Args:
            samples: of the training split, at least 1.
        """
        return self.local_epochs * math.ceil(samples / self.batch_size) * self.learning_rate / (1 - self.momentum)


class Scores(NamedTuple):
    """Result of one evaluation: accuracy in [0, 1], mean cross-entropy in nats, number of samples."""

    accuracy: float
    loss: float
    n: int


class SGD:
    """Torch's stochastic gradient descent with momentum, by its functional form.

    `torch.optim.SGD` does the same, but its constructor imports torch's compiler, which costs more seconds than a
    small client needs to train; and a client process may live for one message only.

    Args:
        params: updated in place by `step`; each must have a gradient by then.
        how: learning rate, momentum and weight decay.
    """

    def __init__(self, params: list[nn.Parameter], how: LocalTraining) -> None:
        self._params = params
        self._how = how
        self._momenta: list[Tensor | None] = [None] * len(params)
        self._fused = params[0].device.type in ("cpu", "cuda")

    @torch.no_grad()
    def step(self) -> None:
        """One update from the parameters' gradients."""
        sgd(
            list(self._params),
            [param.grad for param in self._params if param.grad is not None],
            self._momenta,
            fused=self._fused,
            weight_decay=self._how.weight_decay,
            momentum=self._how.momentum,
            lr=self._how.learning_rate,
            dampening=0.0,
            nesterov=False,
            maximize=False,
        )


class Trainer:
    """One process's model. A client's tensors are copied into it, so a worker holds one model however many it serves.

    Args:
        model: a network that declares its layer groups.
        device: where it runs.
        precision: "fp32", or "bf16" for autocast to bfloat16.

    Attributes:
        manifest: the model's.
        initial: the tensors it was built with.
        parameter_names: names of the parameters, in the order that a gradient hook gets them.
    """

    def __init__(self, model: nn.Module, device: torch.device, precision: str) -> None:
        self.manifest = Manifest.of(model)
        self.initial: Params = parameters.read(model, self.manifest.names())
        self.device = device
        self.bf16 = precision == "bf16"
        self._model = model.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._params = list(self._model.parameters())
        self.parameter_names = tuple(name for name, _ in self._model.named_parameters())

    def load(self, params: Mapping[str, Tensor]) -> None:
        """Make the model that of `params` (every tensor of the manifest)."""
        parameters.load_(self._model, params)

    def read(self, names: Sequence[str]) -> Params:
        """Copies of the named tensors, on the CPU."""
        return parameters.read(self._model, names)

    def state_dict(self) -> Params:
        """A copy of the whole state on the CPU, integer buffers included, as `load_state_dict` wants it."""
        state = self._model.state_dict()
        return {n: t.detach().to("cpu", memory_format=torch.contiguous_format, copy=True) for n, t in state.items()}

    def fit(
        self,
        samples: Samples,
        how: LocalTraining,
        generator: torch.Generator,
        gradient_hook: GradientHook | None = None,
    ) -> float:
        """Train on the client's training split, and return the mean loss per sample of the last epoch in nats.

        Args:
            samples: the client's data.
            how: epochs, batch size and the optimiser's settings.
            generator: decides the order of the samples, the augmentation and the dropout.
            gradient_hook: a method's own term of the gradient.

        Raises:
            UserError: the loss is NaN or infinite.
        """
        features, labels, index = self._local(samples, "train")
        optimizer = SGD(self._params, how)
        self._model.train()
        mean_loss = 0.0
        with self._seeded(generator.initial_seed()):
            for _ in range(how.local_epochs):
                total = torch.zeros((), device=self.device)
                order = index[torch.randperm(len(index), generator=generator)]
                for chosen in torch.split(order, how.batch_size):
                    x, y = self._batch(features, labels, chosen)
                    x = augment(x, generator) if how.augment else x
                    total += self._step(x, y, optimizer, gradient_hook) * len(chosen)
                mean_loss = total.item() / max(1, len(index))
        if not math.isfinite(mean_loss):
            raise UserError(f"training diverged: the loss is {mean_loss}; lower learning-rate={how.learning_rate:g}")
        return mean_loss

    @torch.no_grad()
    def evaluate(self, samples: Samples, split: str) -> Scores:
        """Accuracy and loss on one split of the client's data; the model's state does not change.

        Args:
            samples: the client's data.
            split: a non-empty split.
        """
        features, labels, index = self._local(samples, split)
        self._model.eval()
        hits = torch.zeros((), dtype=torch.int64, device=self.device)
        loss = torch.zeros((), dtype=torch.float64, device=self.device)
        for chosen in torch.split(index, EVALUATION_BATCH):
            x, y = self._batch(features, labels, chosen)
            with self._autocast():
                logits = self._model(x)
            hits += (logits.argmax(1) == y).sum()
            loss += cross_entropy(logits.float(), y, reduction="sum")
        return Scores(hits.item() / len(index), loss.item() / len(index), len(index))

    def gradient(self, samples: Samples, split: str, count: int, generator: torch.Generator) -> Params:
        """The gradient of the mean cross-entropy of a batch, as training would see it; the model does not change.

        Args:
            samples: the client's data.
            split: a non-empty split.
            count: samples of the batch, without replacement; fewer if the split is smaller.
            generator: on the CPU; draws the batch, and seeds dropout.

        Returns:
            A tensor for each parameter, by name, on the model's device; valid until the next step.
        """
        features, labels, index = self._local(samples, split)
        buffers = [(buffer, buffer.clone()) for buffer in self._model.buffers()]
        self._model.train()
        with self._seeded(int(torch.randint(2**62, (), generator=generator))):
            x, y = self._batch(features, labels, index[torch.randperm(len(index), generator=generator)[:count]])
            self._backward(x, y)
        for buffer, was in buffers:
            buffer.copy_(was)
        return {n: p.grad for n, p in zip(self.parameter_names, self._params, strict=True) if p.grad is not None}

    def _step(self, x: Tensor, y: Tensor, optimizer: SGD, hook: GradientHook | None) -> Tensor:
        loss = self._backward(x, y)
        if hook is not None:
            hook(self._params)
        optimizer.step()
        return loss

    def _backward(self, x: Tensor, y: Tensor) -> Tensor:
        with self._autocast():
            loss = cross_entropy(self._model(x), y)
        for param in self._params:
            param.grad = None
        loss.backward()  # type: ignore[no-untyped-call]
        return loss.detach()

    def _local(self, samples: Samples, split: str) -> tuple[Tensor, Tensor, Tensor]:
        """Features, labels and the split's indices into them; on a GPU only the split itself, moved there once."""
        index = samples.splits[split]
        if self.device.type == "cpu":
            return samples.features, samples.labels, index
        features, labels = samples.features[index].to(self.device), samples.labels[index].to(self.device)
        return features, labels, torch.arange(len(index))

    def _batch(self, features: Tensor, labels: Tensor, chosen: Tensor) -> tuple[Tensor, Tensor]:
        """Some samples on the model's device, by numbers that may be on another one."""
        chosen = chosen.to(features.device)
        x, y = features.index_select(0, chosen), labels.index_select(0, chosen)  # 20 times as fast as features[chosen]
        return to_float(x.to(self.device)), y.to(self.device)

    def _autocast(self) -> contextlib.AbstractContextManager[object]:
        return torch.autocast(self.device.type, torch.bfloat16) if self.bf16 else contextlib.nullcontext()

    @contextlib.contextmanager
    def _seeded(self, seed: int) -> Iterator[None]:
        """Dropout draws from the device's global generator: seed it, and put it back afterwards."""
        cuda = self.device.type == "cuda"
        with torch.random.fork_rng(devices=[self.device] if cuda else []):
            torch.default_generator.manual_seed(seed)
            if cuda:
                torch.cuda.manual_seed(seed)
            yield


def resolve_device(name: str) -> torch.device:
    """The device that the setting `device` names; "auto" is the GPU when there is one.

    Raises:
        UserError: no such device here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()  # fails where there is no such device, or none that computes
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).split("\n", maxsplit=1)[0].split(". ", maxsplit=1)[0]
        raise UserError(f'device="{name}" is not available here ({reason}); "auto" or "cpu" always is') from error
    return device
