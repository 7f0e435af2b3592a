"""The head, a network's last linear layer: what it sees of a sample, what is put in its place, and parts added to it.

Methods that look at features, or have more than one head, work with any network that ends in a linear layer: the head
is found as the last layer group, and its input is what the network calls it with. Parts are submodules of the head, so
that a network without them has the same tensors under the same names. Shape letters: b samples or predictions, d
features, k outputs.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from fedham_flwr.core.errors import UserError
from fedham_flwr.core.parameters import LayerGroup, Manifest, module_group
from fedham_flwr.models.parts import Head, OffsetHead, PolicyHead, ValveHead

Last = Callable[[nn.Linear, Float[Tensor, "*b d"]], Tensor]
"""What stands in for the head: of the head and its input. It may give several sets of outputs, [.., 2 k]."""


@dataclass(frozen=True)
class HeadSettings:
    """Which parts are added to the head; without any, that there is a linear one is all that is asked.

    Attributes:
        kind: a key of `HEADS`; empty: none.
        asks: the setting that asks for them, as it is written, for errors; alone it wants a linear head without parts.
    """

    kind: str = ""
    asks: str = ""


def head_group(manifest: Manifest) -> LayerGroup:
    """The last layer group that is no added part.

    Args:
        manifest: the model's.
    """
    return next(group for group in reversed(manifest.groups) if group.name not in PARTS)


def head_name(manifest: Manifest) -> str:
    """Name of the module of the last layer group that is no added part.

    Args:
        manifest: the model's.
    """
    return head_group(manifest).parameters[-1].rpartition(".")[0]


def head_of(model: nn.Module, manifest: Manifest, asks: str) -> nn.Linear:
    """The network's head.

    Args:
        model: the network.
        manifest: the model's.
        asks: what needs a head, as a user knows it, for the error.

    Raises:
        UserError: the last layer is none that is linear.
    """
    found = model.get_submodule(head_name(manifest))
    if not isinstance(found, nn.Linear):
        raise UserError(
            f"{asks} needs a network whose last layer is linear, and that of {type(model).__name__} is "
            f"{type(found).__name__}"
        )
    return found


def through(model: nn.Module, head: str, x: Tensor, last: Last) -> Tensor:
    """The network's outputs with something else in place of its head.

    Args:
        model: the network.
        head: the head's name.
        x: a batch of inputs.
        last: what stands in for the head; called once.

    Returns:
        What the network makes of it. What a network does behind its head, such as a scale, it must do with each output
        alone.
    """

    def replace(found: nn.Module, given: tuple[Tensor], _: Tensor) -> Tensor:
        hook.remove()  # `last` may call the head
        return last(found, given[0])  # type: ignore[arg-type]

    hook = model.get_submodule(head).register_forward_hook(replace)
    try:
        outputs: Tensor = model(x)
    finally:
        hook.remove()
    return outputs


def features(model: nn.Module, head: str, x: Tensor) -> tuple[Float[Tensor, "*b d"], Float[Tensor, "*b k"]]:
    """What the head sees of a batch, and the network's outputs.

    Args:
        model: the network.
        head: the head's name.
        x: a batch of inputs.
    """
    seen: list[Tensor] = []
    hook = model.get_submodule(head).register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    try:
        outputs: Tensor = model(x)
    finally:
        hook.remove()
    return seen[-1], outputs


# ---- parts -----------------------------------------------------------------------------------------------------------


class SecondHead(Head):
    """Two heads on the same features, whose outputs are added; the second one starts at zero."""

    parts: ClassVar[Mapping[str, str]] = {"personal": "personal-head"}

    def __init__(self, head: nn.Linear) -> None:
        super().__init__(head)
        self.personal = nn.Linear(head.in_features, head.out_features)
        nn.init.zeros_(self.personal.weight)
        nn.init.zeros_(self.personal.bias)

    def forward(self, features: Float[Tensor, "*b d"]) -> Float[Tensor, "*b k"]:
        """The sum of both."""
        second: Tensor = self.personal(features)
        return self.own(features) + second


HEADS: Mapping[str, type[Head]] = {"second": SecondHead, "offset": OffsetHead, "valve": ValveHead, "policy": PolicyHead}
"""The kinds of parts that can be added to a head."""
PARTS = frozenset(name for kind in HEADS.values() for name in kind.parts.values())
"""Names of the layer groups that added parts make up."""


def check_alone(model: nn.Module, head: str, batches: Sequence[Tensor], asks: str) -> None:
    """Refuse a network that makes its outputs of more than its head's: something in its place would do something else.

    Args:
        model: the network.
        head: the head's name.
        batches: of which the first that the network takes is tried.
        asks: what needs the head, as a user knows it.

    Raises:
        UserError: a head that gives its outputs twice does not make the network give its own twice.
    """
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            tried = [_twice(model, head, batch) for batch in batches]
    finally:
        model.train(training)
    if next((found for found in tried if found is not None), True) is False:
        raise UserError(
            f"{asks} needs a network whose outputs are its last layer's, or made of each of these alone, and those of "
            f"{type(model).__name__} are not ({head} is its last layer): wanted another network, or another method"
        )


def _twice(model: nn.Module, head: str, batch: Tensor) -> bool | None:
    """Whether it does, up to a number for each prediction; None of a batch that the network does not take."""
    try:
        outputs: Tensor = model(batch)
    except Exception:  # whatever a user's module raises
        return None
    try:
        both = through(model, head, batch, lambda last, seen: torch.cat([last(seen)] * 2, -1))
    except Exception:  # a sum with outputs of another width, say
        return False
    if both.shape != (*outputs.shape[:-1], 2 * outputs.shape[-1]):
        return False
    if both.is_meta:  # in `models.sizes`, where nothing has values
        return True
    apart = torch.stack(both.chunk(2, -1)) - outputs
    # log-softmax leaves log 2 of each prediction, which changes no loss
    return torch.allclose(apart, apart[..., :1].expand_as(apart), atol=1e-3, equal_nan=True)


def add_parts(model: nn.Module, manifest: Manifest, settings: HeadSettings, batches: Sequence[Tensor] = ()) -> None:
    """Check that there is a head, and put one with parts in its place, after its own parameters are drawn.

    Args:
        model: the network, which is changed.
        manifest: the model's.
        settings: which parts; with none nothing is changed.
        batches: what the network is tried with.

    Raises:
        UserError: the last layer is none that is linear, or the outputs are not its.
    """
    name, head = head_name(manifest), head_of(model, manifest, settings.asks)
    check_alone(model, name, batches, settings.asks)
    if not settings.kind:
        return
    if head is model:
        raise UserError(f"{settings.asks} puts a part beside the last layer, and {type(model).__name__} is that layer")
    model.set_submodule(name, HEADS[settings.kind](head))


def parts_of(model: nn.Module) -> tuple[LayerGroup, ...]:
    """A layer group for each part of a network's head; none for a network without parts."""
    found: dict[str, LayerGroup] = {}
    for name, module in model.named_modules():
        if isinstance(module, Head):
            for part, group in module.parts.items():
                found[group] = dataclasses.replace(module_group(model, f"{name}.{part}"), name=group)
    return tuple(found.values())


def with_parts(groups: Sequence[LayerGroup], parts: tuple[LayerGroup, ...]) -> tuple[LayerGroup, ...]:
    """The layer groups of a network, in which each part of a head is a group of its own, behind all others.

    Args:
        groups: as declared or found, with the tensors of the parts or without.
        parts: as `parts_of` gives them.
    """
    taken = {name for group in parts for name in group.names}
    kept = []
    for group in groups:
        own, buffers = (tuple(n for n in names if n not in taken) for names in (group.parameters, group.buffers))
        if own or buffers:
            kept.append(dataclasses.replace(group, parameters=own, buffers=buffers))
    return (*kept, *parts)
