"""What clients must have alike: the shape of a sample, what they learn, what classes, columns and schemas mean."""

from __future__ import annotations

from collections.abc import Sequence

from fedham_flwr.core.errors import UserError
from fedham_flwr.federation.messages import Profile


def agree_on_target(first: Profile, other: Profile) -> None:
    """The same target, and of labels and values equally many.

    Raises:
        UserError: they differ.
    """
    if other.target != first.target:
        raise UserError(
            f"client {first.client} has {first.target} targets and client {other.client} has {other.target} targets: "
            "all clients must learn the same"
        )
    if first.target in ("multi-label", "value") and other.classes != first.classes:
        raise UserError(
            f"client {first.client} has {first.classes} {first.target} targets a sample and client {other.client} has "
            f"{other.classes}: all clients must learn the same"
        )


def agree_on_meanings(first: Profile, other: Profile) -> None:
    """The same names in the same order; the last classes may be missing where none has names but numbers.

    Raises:
        UserError: they differ.
    """
    for what, ours, theirs in zip(("class", "column", "schema"), first.meanings, other.meanings, strict=False):
        for place, (one, another) in enumerate(zip(ours, theirs, strict=False)):
            if one != another and what == "schema":
                raise UserError(
                    f"client {first.client} and client {other.client} have different schemas ({one} and {another}): "
                    "all clients need the same file as table.schema"
                )
            if one != another:
                raise UserError(
                    f"client {first.client} calls {what} {place} {one!r} and client {other.client} calls it "
                    f"{another!r}: all clients must have the same, in the same order"
                )


def agree(profiles: Sequence[Profile]) -> tuple[tuple[int, ...], int]:
    """The shape of a sample that all clients share, as `batches` has it, and the number of outputs.

    Raises:
        UserError: two clients have samples of different shapes, learn something else, or mean different things by a
            class or a column.
    """
    first = profiles[0]
    for other in profiles:
        agree_on_target(first, other)
        agree_on_meanings(first, other)
        if other.shape != first.shape:
            raise UserError(
                f"client {first.client} has samples of shape {first.shape} and client {other.client} of {other.shape}: "
                "all clients must have the same, (channels, height, width) of images, (sequence-length,) of text or "
                "(2, columns) of tables"
            )
    return first.shape, max(profile.classes for profile in profiles)
