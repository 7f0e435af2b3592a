"""What engines say of how they carried out requests, of several networks or several workers, as one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any


def summed(told: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What several engines say, as one says it; nothing of none.

    Args:
        told: of each what `Engine.told` gave; nothing of one that has not begun.
    """
    told = [each for each in told if each]
    if not told:
        return {}
    alone: Counter[str] = Counter()
    for each in told:
        alone.update(each.get("alone", {}))
    found: dict[str, Any] = {}
    for each in reversed(told):
        found |= each
    ways = dict.fromkeys(str(each["network"]) for each in told if "network" in each)
    return {
        **found,
        "network": ", ".join(ways),
        "together": sum(each.get("together", 0) for each in told),
        "alone": dict(alone),
    }
