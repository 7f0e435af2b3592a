"""Methods that do what none should, for studies in other processes: raise, or end the process."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from own_methods import method

from fedham_flwr import AveragingStrategy


def of_a_study(results_dir: str) -> bool:
    """Whether a run is one of a study, and none of those that are tried before it."""
    return Path(results_dir).parent.name == "runs"


class Raising(AveragingStrategy):
    """Raises in the third round."""

    def merge(self, round_number: int, uploads: Mapping[str, Any]) -> None:
        if round_number == 3:
            raise RuntimeError("planted")
        super().merge(round_number, uploads)


class Ending(AveragingStrategy):
    """Ends its process in the third round of a study's run, each time."""

    def merge(self, round_number: int, uploads: Mapping[str, Any]) -> None:
        if round_number == 3 and of_a_study(self.settings.results_dir):
            os._exit(7)
        super().merge(round_number, uploads)


class EndingOnce(AveragingStrategy):
    """Ends its process in the third round, the first time."""

    def merge(self, round_number: int, uploads: Mapping[str, Any]) -> None:
        mark = Path(self.settings.results_dir) / "ended"
        if round_number == 3 and of_a_study(self.settings.results_dir) and not mark.exists():
            mark.touch()
            os._exit(7)
        super().merge(round_number, uploads)


RAISING = method(Raising, "raising")
ENDING = method(Ending, "ending")
ENDING_ONCE = method(EndingOnce, "ending-once")
