"""Grafts: a small block that is inserted into a network behind one of the places that the network declares.

A place is named by the layer group that it follows. Shape letters: b batch, c channels.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal, NamedTuple

import torch
from annotated_types import Gt
from jaxtyping import Float
from torch import Tensor

from fedham_flwr.core.errors import UserError
from fedham_flwr.core.parameters import LayerGroup, Params, module_group
from fedham_flwr.models import kernels
from fedham_flwr.models.cbam import CBAM, Adapter, SqueezeExcitation
from fedham_flwr.models.network import Network


@dataclass(frozen=True)
class GraftSettings:
    """Which block is grafted onto a network, where and how.

    Attributes:
        kind: none, cbam, se (squeeze-and-excitation) or adapter.
        after: the layer group it follows; auto: the last one with a feature map.
        reduction: how many times fewer neurons than channels there are in the middle of its bottleneck.
        insertion: identity: the network's outputs are at first what they were, bit for bit. plain: the block as its
            authors have it, with torch's random numbers; CBAM then lets about a quarter of the features through. Its
            tensor `gain` says that its output is multiplied by 1, or by another number as long as it rests.
        section: of the settings `attention` and `graft-after` that ask for it, for errors.
    """

    kind: Literal["none", "cbam", "se", "adapter"] = "none"
    after: str = "auto"
    reduction: Annotated[int, Gt(0)] = 16
    insertion: Literal["identity", "plain"] = "identity"
    section: str = "fedtransfer"

    def setting(self, name: str) -> str:
        """The full name of a setting of the method that grafts, for an error."""
        return f"{self.section}.{name}"


class Place(NamedTuple):
    """Where a graft can be: the number of channels (or neurons) there, and whether it is a feature map."""

    channels: int
    is_map: bool


BLOCKS: Mapping[str, type[CBAM | SqueezeExcitation | Adapter]] = {
    "cbam": CBAM,
    "se": SqueezeExcitation,
    "adapter": Adapter,
}
NEEDS_MAP = ("cbam", "se")

GAINS: Mapping[str, float] = {"cbam": 4.0, "se": 2.0, "adapter": 1.0}
"""What a neutral block's output is multiplied by, for good.

Its maps are then 1/2 each, and a published CBAM would leave a quarter of the features to layers that were trained with
the whole. Halves and the powers of two that undo them change the exponent alone, so that no bit is lost. With a large
bias instead, for maps near 1, the sigmoid would be flat, and the block would hardly learn.
"""
GAIN = "gain"
"""Name of the tensor of a plain block that its output is multiplied by."""


def at_rest(kind: str, block: Params) -> Params:
    """The tensors of a plain block with which it changes nothing, bit for bit.

    Args:
        kind: of the block.
        block: its tensors, under their names in the network.
    """
    layers = {name: name.removeprefix(f"{kind}.").rpartition(".") for name in block}
    zero = {
        name: torch.zeros_like(block[name])
        for name, (layer, _, tensor) in layers.items()
        if layer in BLOCKS[kind].silent and tensor in ("weight", "bias")
    }
    gain = f"{kind}.{GAIN}"
    return {**block, **zero, gain: torch.full_like(block[gain], GAINS[kind])}


class Graftable(Network):
    """A network with declared places, onto which one block can be grafted.

    A subclass declares `places`, passes what it computes there through `after`, and its groups through `with_graft`.
    """

    _grafted: tuple[str, str, float | None] | None = None  # the place, the block's name, the gain if it is no tensor

    def places(self) -> Mapping[str, Place]:
        """The places by the layer group that they follow, from the input to the output."""
        raise NotImplementedError

    def graft(self, settings: GraftSettings) -> None:
        """Insert the block, as a submodule named by its kind; once, and after the network's own parameters are drawn.

        Args:
            settings: with kind "none" nothing happens.

        Raises:
            UserError: there is no such place, or not for such a block.
        """
        if settings.kind == "none":
            return
        place = self.place_of(settings)
        block = BLOCKS[settings.kind](self.places()[place].channels, settings.reduction)
        gain = None
        if settings.insertion == "identity":
            block.neutral_()
            gain = GAINS[settings.kind]
        else:
            block.register_buffer(GAIN, torch.ones(1))
        self.add_module(settings.kind, block)
        self._grafted = place, settings.kind, gain

    def place_of(self, settings: GraftSettings) -> str:
        """The layer group that such a graft follows, or would if there were one.

        Raises:
            UserError: there is no such place, or not for such a block.
        """
        places = self.places()
        maps = [name for name, place in places.items() if place.is_map]
        if settings.after == "auto":
            return maps[-1]
        if settings.after not in places:
            raise UserError(
                f'{settings.setting("graft-after")}="{settings.after}" names no layer group that this network has a '
                f"place behind: wanted auto or one of {', '.join(places)}"
            )
        if settings.kind in NEEDS_MAP and settings.after not in maps:
            raise UserError(
                f'{settings.setting("graft-after")}="{settings.after}" is a place without a feature map, which '
                f'{settings.setting("attention")}="{settings.kind}" needs: wanted auto or one of {", ".join(maps)}'
            )
        return settings.after

    def after(self, place: str, x: Float[Tensor, "b c *hw"]) -> Float[Tensor, "b c *hw"]:
        """What follows a place: the block's output if it is there, else x itself.

        Args:
            place: a key of `places`.
            x: what the network has computed up to there.
        """
        if self._grafted is None or self._grafted[0] != place:
            return x
        _, name, gain = self._grafted
        output: Tensor = self.get_submodule(name)(x)
        if gain is None:
            own = kernels.per_sample(self.get_submodule(name).get_buffer(GAIN), len(x))
            return output * own.view(-1, *[1] * (x.dim() - 1)).to(output.dtype)
        return output if gain == 1.0 else output * gain

    def with_graft(self, groups: Iterable[LayerGroup]) -> Sequence[LayerGroup]:
        """The network's own layer groups, with that of the graft, if there is one, behind its place.

        Those up to the last feature map are low-level; the graft never is.

        Args:
            groups: from the input to the output.
        """
        result: list[LayerGroup] = []
        last, low = [name for name, place in self.places().items() if place.is_map][-1], True
        for group in groups:
            result.append(dataclasses.replace(group, low_level=low))
            low = low and group.name != last
            if self._grafted is not None and group.name == self._grafted[0]:
                result.append(module_group(self, self._grafted[1]))
        return result
