"""What a built-in network says of itself, by which it is chosen and refused."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import nn


class Network(nn.Module):
    """A built-in network, called with those of `shape`, `outputs` and `settings` that it names.

    Attributes:
        kinds: what it is for, as `core.shapes.sample_kind` has it.
        smallest: side of the smallest images, in pixels.
        Settings: the dataclass of its settings; None without.
    """

    kinds: ClassVar[tuple[str, ...]] = ("image",)
    smallest: ClassVar[int] = 1
    Settings: ClassVar[type | None] = None

    @classmethod
    def least(cls, settings: Any) -> int:
        """Side of the smallest images with such settings, in pixels."""
        del settings
        return cls.smallest
