"""Which split's scores of a run are shown: the test split's, or the validation split's where that was not scored."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

from fedham_flwr.core.records import MEMBER, Row
from fedham_flwr.training.metrics import Metric


def split_shown(rows: Iterable[Row], metric: Metric, over_rounds: bool = False) -> str:
    """The split whose scores are shown: test where it was scored, else validation.

    Args:
        rows: of a run, or of a part of it.
        metric: that is shown.
        over_rounds: shown is how the scores go from round to round; of a test split that was scored in the last round
            alone there is nothing to see.
    """
    rounds: dict[str, set[int]] = defaultdict(set)
    for row in rows:
        if (row.population, row.metric) == (MEMBER, metric.name):
            rounds[row.split].add(row.round)
    test, validation = len(rounds["test"]), len(rounds["validation"])
    if over_rounds and test == 1 and validation > 1:
        return "validation"
    return "test" if test or not validation else "validation"
