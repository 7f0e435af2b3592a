"""What two clients must have alike: what they learn, and what they mean by a class, a column and a schema."""

from __future__ import annotations

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
