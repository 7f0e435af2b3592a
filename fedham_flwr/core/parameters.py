"""Parameter trees: named tensors, the layer groups that own them, and what lies between them and a model.

A model's tensors are cut into layer groups (one module that owns parameters, weight and bias together). Personal and
shared are sets of group names, never a substring of a parameter's name. Floating-point buffers (the running
statistics of a normalisation layer) belong to their group and travel with it. Integer buffers are counters: a
weighted mean makes 6 of 7 and 7, so they are never sent and never averaged; `load_` sets them to zero.

A network may name tensors that are fixed (`core.fixed`), which are in no group.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

from fedham_flwr.core.fixed import counters, fixed_digest, fixed_of

Params = dict[str, Tensor]


@dataclass(frozen=True)
class LayerGroup:
    """The tensors of one layer, which are always shared, kept or mixed together.

    Attributes:
        name: the group's name, unique in the model.
        parameters: full names of its parameters, as in `named_parameters()`.
        buffers: full names of its floating-point buffers.
        low_level: it belongs to the layers next to the input, whose features are of use for other tasks too.
    """

    name: str
    parameters: tuple[str, ...]
    buffers: tuple[str, ...] = ()
    low_level: bool = False

    @property
    def names(self) -> tuple[str, ...]:
        """Every tensor of the group: parameters, then buffers."""
        return self.parameters + self.buffers

    def without(self, names: Collection[str]) -> LayerGroup:
        """The group without some of its tensors."""
        parameters, buffers = (tuple(n for n in own if n not in names) for own in (self.parameters, self.buffers))
        return LayerGroup(self.name, parameters, buffers, self.low_level)


class Grouped(Protocol):
    """A network that declares its layer groups."""

    def layer_groups(self) -> Sequence[LayerGroup]:
        """The groups, from the input to the output."""
        ...


def module_group(model: nn.Module, name: str) -> LayerGroup:
    """The group of one named submodule: all its parameters and floating-point buffers.

    Args:
        model: the whole network.
        name: the submodule's name, as in `named_modules()`.
    """
    module = model.get_submodule(name)
    return LayerGroup(
        name,
        tuple(f"{name}.{n}" for n, _ in module.named_parameters()),
        tuple(f"{name}.{n}" for n, b in module.named_buffers() if b.is_floating_point()),
    )


@dataclass(frozen=True)
class Manifest:
    """What a model consists of: its groups in order, the shape and dtype of every tensor in them, and what is fixed."""

    groups: tuple[LayerGroup, ...]
    shapes: Mapping[str, tuple[int, ...]]
    dtypes: Mapping[str, torch.dtype]
    fixed: str = ""  # the digest of the tensors that the network holds fixed; empty without
    fixed_parameters: int = 0  # how many scalars the parameters among them have

    @classmethod
    def of(cls, model: nn.Module, groups: Sequence[LayerGroup] | None = None) -> Manifest:
        """Read a model's groups and check that they partition its parameters and floating-point buffers.

        Args:
            model: the network.
            groups: its layer groups; by default those that it declares by `layer_groups()`.

        Raises:
            ValueError: a tensor is in no group or in two, or a group names a tensor that the model lacks.
        """
        # nn.Module types its attributes as Tensor
        groups = tuple(model.layer_groups() if groups is None else groups)  # type: ignore[operator]
        if fixed := fixed_of(model):
            groups = tuple(kept for group in groups if (kept := group.without(fixed)).names)
        tensors = floating_tensors(model)
        claimed = [name for group in groups for name in group.names]
        twice = sorted({name for name in claimed if claimed.count(name) > 1})
        missing, foreign = sorted(tensors.keys() - set(claimed)), sorted(set(claimed) - tensors.keys())
        if twice or missing or foreign:
            raise ValueError(
                f"{type(model).__name__}.layer_groups() must name every tensor of the model once: "
                f"in two groups {twice}, in none {missing}, not in the model {foreign}"
            )
        return cls(
            groups,
            {name: tuple(tensors[name].shape) for name in claimed},
            {name: tensors[name].dtype for name in claimed},
            fixed_digest(model),
            sum(param.numel() for name, param in model.named_parameters() if name in fixed),
        )

    @cached_property
    def group_names(self) -> tuple[str, ...]:
        """Names of the groups, from the input to the output."""
        return tuple(group.name for group in self.groups)

    @cached_property
    def buffers(self) -> tuple[str, ...]:
        """Names of all floating-point buffers, the running statistics."""
        return tuple(name for group in self.groups for name in group.buffers)

    def names(self, groups: Iterable[str] | None = None) -> tuple[str, ...]:
        """Names of all tensors in the groups given (all groups by default), in the model's order.

        Raises:
            ValueError: a group that the model does not have.
        """
        if groups is None:
            return self._all_names
        chosen = set(groups)
        if unknown := sorted(chosen - set(self.group_names)):
            raise ValueError(f"the model has no layer groups {unknown}; it has {list(self.group_names)}")
        return tuple(name for group in self.groups if group.name in chosen for name in group.names)

    @cached_property
    def _all_names(self) -> tuple[str, ...]:
        return tuple(name for group in self.groups for name in group.names)

    def count(self, groups: Iterable[str] | None = None) -> int:
        """Number of scalars in the groups given (all groups by default)."""
        return sum(torch.Size(self.shapes[name]).numel() for name in self.names(groups))

    def check(self, params: Mapping[str, Tensor], names: Sequence[str], finite: bool = False) -> None:
        """Refuse tensors that are not exactly those named, of the right shape and dtype, and finite.

        Args:
            params: the tensors.
            names: wanted.
            finite: they are known to be.

        Raises:
            ValueError: the first fault, with the tensor's name, what it is and what was wanted.
        """
        check_names(params, names)
        for name in names:
            tensor, shape, dtype = params[name], self.shapes[name], self.dtypes[name]
            if tuple(tensor.shape) != shape:
                raise ValueError(f"{name} has shape {tuple(tensor.shape)}, wanted {shape}")
            if tensor.dtype != dtype:
                raise ValueError(f"{name} has dtype {tensor.dtype}, wanted {dtype}")
            if not finite and not all_finite(tensor):
                raise ValueError(f"{name} holds NaN or infinity")

    def fingerprint(self) -> str:
        """SHA-256 of names, shapes, dtypes and what is fixed: equal for models whose tensors are exchangeable."""
        text = repr([(g.name, [(n, self.shapes[n], str(self.dtypes[n])) for n in g.names]) for g in self.groups])
        return hashlib.sha256((text + self.fixed).encode()).hexdigest()


def all_finite(tensor: Tensor) -> bool:
    """Whether a tensor holds neither NaN nor infinity.

    A sum is finite only if all terms are, and costs a tenth of looking at each; one that is not may have overflowed.
    """
    return bool(torch.isfinite(tensor.sum())) or bool(torch.isfinite(tensor).all())


def finite_rows(tensor: Tensor) -> Tensor:
    """Which rows of a tensor [n, ...] hold neither NaN nor infinity: bool [n]. As cheap as `all_finite`."""
    flat = tensor.unsqueeze(-1).flatten(1)
    good = torch.isfinite(flat.sum(1))
    return good if bool(good.all()) else torch.isfinite(flat).all(1)


def floating_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and floating-point buffers of a model that are not fixed: live views, not copies."""
    fixed = fixed_of(model)
    buffers = ((name, b) for name, b in model.named_buffers() if b.is_floating_point())
    return {name: tensor for name, tensor in (*model.named_parameters(), *buffers) if name not in fixed}


def read(model: nn.Module, names: Sequence[str]) -> Params:
    """Copies of a model's tensors on the CPU, contiguous, in the order of `names`."""
    tensors = floating_tensors(model)
    return {n: tensors[n].detach().to("cpu", memory_format=torch.contiguous_format, copy=True) for n in names}


@torch.no_grad()
def load_(model: nn.Module, params: Mapping[str, Tensor]) -> None:
    """Overwrite all of a model's tensors in place; integer buffers become zero.

    Args:
        model: the model to overwrite; one instance serves many clients, so nothing of the last one may remain.
        params: exactly the model's parameters and floating-point buffers.

    Raises:
        ValueError: a name is missing or not the model's.
    """
    tensors = floating_tensors(model)
    if tensors.keys() != params.keys():
        raise ValueError(f"names differ from the model's: {sorted(tensors.keys() ^ params.keys())}")
    for name, tensor in tensors.items():
        tensor.copy_(params[name])
    for buffer in counters(model).values():
        buffer.zero_()


def check_names(given: Mapping[str, Tensor], wanted: Iterable[str]) -> None:
    """Refuse tensors that have not the names wanted.

    Raises:
        ValueError: the names that are missing, or else those that are too many.
    """
    if missing := [name for name in wanted if name not in given]:
        raise ValueError(f"tensors are missing: {missing}")
    if foreign := sorted(given.keys() - set(wanted)):
        raise ValueError(f"tensors are not wanted: {foreign}")


def empty(shape: Sequence[int], like: Tensor) -> Tensor:
    """An array with a tensor's dtype and device. By NumPy, which asks the system for huge pages: fewer faults."""
    if like.device.type != "cpu":
        return torch.empty(*shape, dtype=like.dtype, device=like.device)
    return torch.from_numpy(np.empty(tuple(shape), like.new_empty(0).numpy().dtype))


def enlarged(old: Tensor | None, shape: Sequence[int], like: Tensor) -> Tensor:
    """Zeros with a tensor's dtype and device, and in their corner an older, smaller array if there is one."""
    new = like.new_zeros(*shape)
    if old is not None:
        new[tuple(slice(size) for size in old.shape)] = old
    return new
