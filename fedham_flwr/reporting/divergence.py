"""Whether training has diverged to losses that are huge, but numbers: such a run comes to its end as any other."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence

from fedham_flwr.core.records import MEMBER, Phase, Row

log = logging.getLogger("fedham_flwr")

TIMES = 1000
"""A client's loss has diverged that is above so many times what clients began with, on average."""
LEAST = 0.01
"""What clients began with counts as at least so much: beginning with a trained model, they may have hardly any loss."""
WARNINGS = "warnings"
"""Entry of the summary: what is said of a run that came to its end, a sentence each."""


def warnings_of(rows: Sequence[Row], phase: Phase) -> dict[str, list[str]]:
    """The entry of the summary; nothing of a run that has not diverged.

    Losses are those of the validation splits, or of the test splits where there is no validation: of the models that
    clients had before they trained for the first time, and of those that the method stands for, in the last round.

    Args:
        rows: of all rounds.
        phase: of the models that the method stands for.
    """
    losses = [row for row in rows if row.metric == "loss" and row.population == MEMBER]
    split = "validation" if any(row.split == "validation" for row in losses) else "test"
    said = _said([row for row in losses if row.split == split], split, phase)
    return {WARNINGS: [said]} if said else {}


def say(summary: Mapping[str, object]) -> None:
    """Log the warnings of a run."""
    found = summary.get(WARNINGS)
    for each in found if isinstance(found, list) else ():
        log.warning("%s", each)


def _said(losses: Sequence[Row], split: str, phase: str) -> str:
    number, end = min((row.round for row in losses), default=0), max((row.round for row in losses), default=0)
    first = _by_client(row for row in losses if (row.round, row.phase) == (number, "before"))
    last = _by_client(row for row in losses if (row.round, row.phase) == (end, phase))
    begun = sum(first.values()) / max(1, len(first))
    bad = [loss for loss in last.values() if loss > TIMES * max(begun, LEAST)]
    if end == number or not begun or not bad:
        return ""
    return (
        f"training has diverged: the {split} loss of {len(bad)} of {len(last)} clients is more than {TIMES:,} times "
        f"what it was at first, {begun:.3g}, and up to {max(bad):.3g}: lower learning-rate, or a penalty of the method"
    )


def _by_client(rows: Iterable[Row]) -> dict[str, float]:
    """Client -> its loss, of its personal model if it has one."""
    return {row.client: row.value for row in sorted(rows, key=lambda row: row.model == "personal")}
