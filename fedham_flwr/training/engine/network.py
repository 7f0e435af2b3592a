"""A network run for many clients at once, each with weights of its own, without a change to the network.

Most layers of a network treat each sample alone and have no weights: they take the samples of all clients as one large
batch, as it is. The few that have weights are caught as they are called, and carried out client by client in one
product (`folding`, `layers`). Whether that is right for a network is not assumed but tried: once, with two clients and
random weights in float64, against one at a time. What fails the trial, since it uses weights in another way, looks at
values, or mixes samples, is tried with `torch.func.vmap`, and runs one at a time if that fails too.
"""

from __future__ import annotations

import contextlib
import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from fedham_flwr.core.errors import first_line
from fedham_flwr.core.fixed import counters, fixed_of
from fedham_flwr.models import kernels
from fedham_flwr.training.engine.folding import Folded, NotStackableError
from fedham_flwr.training.engine.products import taken

CLOSE = 1e-7
TRIED = 3
"""Samples of a client in the trial; not as many as clients, so that the two cannot be confused."""
COUNT = "num_batches_tracked"
"""The one integer buffer that is known: how many batches a batch normalisation has seen."""


class StackedNetwork:
    """A network for many clients at once.

    Args:
        model: the network, on its device; its own weights are not used.
        batches: such as it may be given, of any size: only shape, type and device count, of the first that it takes.
        large: multiply-adds of a sample's forward pass from which it is not tried.

    Attributes:
        way: folded (see above), vmap (`torch.func`), or none.
        why: why it cannot be run for many at once; empty if it can.
        products: multiply-adds of one sample's forward pass; 0 where that was not counted.
    """

    def __init__(self, model: nn.Module, batches: Sequence[Tensor], large: float = math.inf) -> None:
        self._model, self._given_to = model, _GivenTo(model)
        self._fixed: dict[str, Tensor] = {}  # of the trial, in float64; else the network's own
        self._running = vmap(self._one, (0, 0), randomness="error")
        self.way: Literal["folded", "vmap", "none"] = "folded"
        self.why = ""
        inputs, self.products = taken(model, batches)
        if self.products > large:
            self.way, self.why = "none", f"a sample takes {self.products:,} multiply-adds, enough for one at a time"
            return
        reasons = []
        ways: tuple[Literal["folded", "vmap"], ...] = ("folded", "vmap")
        for way in ways:
            self.way = way
            try:
                with warnings.catch_warnings():  # torch.func says where it is slow
                    warnings.simplefilter("ignore")
                    self._try(inputs)
                return
            except NotStackableError as error:
                reasons.append(str(error))
            except Exception as error:  # whatever a user's network, or torch for it, raises
                reasons.append(f"{type(error).__name__}: {first_line(error)}")
        self.way, self.why = "none", "; ".join(dict.fromkeys(reasons))

    def __call__(
        self,
        tensors: Mapping[str, Tensor],
        x: Tensor,
        real: Tensor | None = None,
        draws: Sequence[torch.Generator] | None = None,
        sizes: Sequence[int] | None = None,
    ) -> Tensor:
        """Outputs of a folded batch.

        Args:
            tensors: parameters and buffers, stacked: [m, ...]; fixed ones, which are not among them, are everybody's.
            x: [m b, ...].
            real: float32 [m, b], 0 for samples that only fill up; by default none do.
            draws: a generator for each client, for dropout.
            sizes: how many samples of each client are no fillers; by default all.

        Returns:
            [m b, ...].
        """
        clients = len(next(iter(tensors.values())))
        if self.way == "vmap":
            out: Tensor = self._running(dict(tensors), x.view(clients, -1, *x.shape[1:]))
            return out.flatten(0, 1)
        return self.apply(_call, tensors, (x,), real, draws, sizes)

    def apply(
        self,
        function: Callable[..., Tensor],
        tensors: Mapping[str, Tensor],
        given: tuple[Any, ...],
        real: Tensor | None = None,
        draws: Sequence[torch.Generator] | None = None,
        sizes: Sequence[int] | None = None,
    ) -> Tensor:
        """What a function gives of the network, with each client's weights in each client's samples; `way` is folded.

        Args:
            function: called with the network and what is given.
            tensors: as for a call.
            given: folded batches [m b, ...] among it.
            real: as for a call.
            draws: as for a call.
            sizes: as for a call.
        """
        clients = len(next(iter(tensors.values())))
        mode = Folded(clients, real, draws, sizes)
        with mode, kernels.stacked(clients), kernels.drawing(mode.drawn if draws is not None else None):
            named = {f"model.{name}": tensor for name, tensor in {**self._fixed, **tensors}.items()}
            made: Tensor = functional_call(self._given_to, named, (function, *given))
        return made

    @property
    def masks(self) -> bool:
        """Whether clients with fewer samples in a batch than others may be filled up."""
        return self.way == "folded" or not any(isinstance(m, _NORMS) for m in self._model.modules())

    @property
    def drops(self) -> bool:
        """Whether anything is dropped, or drawn in another way, in training."""
        return any(
            (isinstance(m, _DROPS) and m.p > 0) or bool(getattr(m, "_dropout", 0)) or bool(getattr(m, "draws", False))
            for m in self._model.modules()
        )

    def _one(self, tensors: dict[str, Tensor], x: Tensor) -> Tensor:
        with kernels.drawing(_refuse):
            made: Tensor = functional_call(self._model, {**self._fixed, **tensors}, (x,))
        return made

    def _try(self, inputs: Tensor) -> None:
        """Two clients at once against one at a time, in evaluation and in training."""
        if strange := [name for name in counters(self._model) if not name.endswith(COUNT)]:
            raise NotStackableError(f"it counts with whole numbers in {strange[0]}")
        generator = torch.Generator().manual_seed(1)
        fixed = fixed_of(self._model)
        trained, buffers = (
            {name: tensor for name, tensor in named if name not in fixed}
            for named in (self._model.named_parameters(), self._model.named_buffers())
        )
        stacked: dict[str, Tensor] = {}  # not the model's own, which may be a client's that diverged; in float64
        for name, tensor in trained.items():
            stacked[name] = torch.rand(2, *tensor.shape, generator=generator, dtype=torch.float64).sub_(0.5).mul_(0.4)
        for name, buffer in buffers.items():
            stacked[name] = torch.zeros(2, *buffer.shape, dtype=buffer.dtype)
            if buffer.is_floating_point():
                drawn = torch.rand(2, *buffer.shape, generator=generator, dtype=torch.float64)
                stacked[name] = drawn.add_(0.5)  # above 0, as a variance must be
        stacked = {name: tensor.to(inputs.device) for name, tensor in stacked.items()}
        shape = (2 * TRIED, *inputs.shape[1:])
        floats = inputs.is_floating_point()  # else numbers of words, of which every network has two
        x = torch.rand(shape, generator=generator) if floats else torch.randint(0, 2, shape, generator=generator)
        x = x.to(inputs.device, torch.float64 if floats else inputs.dtype)
        was = self._model.training
        self._fixed = self._doubled(fixed)
        try:
            for training in (False, True):
                self._model.train(training)
                self._compare(stacked, x)
        finally:
            self._model.train(was)
            self._fixed = {}

    def _doubled(self, fixed: frozenset[str]) -> dict[str, Tensor]:
        """The fixed tensors in float64, as parameters, by which a layer knows that they are not stacked."""
        named = {**dict(self._model.named_parameters()), **dict(self._model.named_buffers())}
        floats = {name: named[name] for name in fixed if named[name].is_floating_point()}
        return {name: nn.Parameter(tensor.detach().double(), requires_grad=False) for name, tensor in floats.items()}

    def _compare(self, stacked: Mapping[str, Tensor], x: Tensor) -> None:
        alone, together = ({name: t.clone() for name, t in stacked.items()} for _ in range(2))
        buffers = dict(self._model.named_buffers())
        leaves = [tensor.requires_grad_() for name, tensor in together.items() if name not in buffers]
        with torch.enable_grad(), _no_dropout():
            outputs = self(together, x)
            found = torch.autograd.grad(outputs.square().sum(), leaves, allow_unused=True)
        for client, part in enumerate(x.chunk(2)):
            own = {name: t[client].detach() for name, t in alone.items()}
            leaves = [tensor.requires_grad_() for name, tensor in own.items() if name not in buffers]
            with torch.enable_grad(), _no_dropout():
                output = functional_call(self._model, {**self._fixed, **own}, (part,))
                slopes = torch.autograd.grad(output.square().sum(), leaves, allow_unused=True)
            pairs = [(outputs.chunk(2)[client], output)]
            pairs += [(together[n][client], t) for n, t in own.items() if n in buffers]
            for mine, theirs in zip(found, slopes, strict=True):
                if (mine is None) != (theirs is None):
                    raise NotStackableError("some of its weights are used for one client and not for another")
                pairs += [(mine[client], theirs)] if mine is not None and theirs is not None else []
            for mine, theirs in pairs:
                scale = max(1.0, theirs.abs().max().item()) if theirs.numel() else 1.0
                if mine.shape != theirs.shape or not torch.allclose(mine / scale, theirs / scale, CLOSE, CLOSE):
                    raise NotStackableError("many clients at once give other numbers than one at a time")


_NORMS = nn.modules.batchnorm._BatchNorm
_DROPS = nn.modules.dropout._DropoutNd


class _GivenTo(nn.Module):
    """A network that is given to a function, so that its weights can be replaced while that works."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, function: Callable[..., Tensor], *given: Any) -> Tensor:
        return function(self.model, *given)


def _call(model: nn.Module, x: Tensor) -> Tensor:
    made: Tensor = model(x)
    return made


def _refuse(*_: object) -> None:
    raise NotStackableError("it draws at random")


@contextlib.contextmanager
def _no_dropout() -> Iterator[None]:
    """Dropout passes all on, and nothing else is drawn."""
    with _Passing(), kernels.drawing(lambda *_: None):
        yield


class _Passing(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return args[0] if func is functional.dropout else func(*args, **(kwargs or {}))
