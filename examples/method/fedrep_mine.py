"""A method of one's own in one file: FedRep, used as `strategy="fedrep_mine:FEDREP"`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from fedham_flwr import AveragingStrategy, Method, Outcome, RoundClient, Split, split_groups


@dataclass(frozen=True)
class FedRepSettings:
    """Settings under `fedrep.`.

    Attributes:
        head_epochs: of the head, before the rest is trained.
    """

    head_epochs: int = 5


def split(manifest: Any, _settings: FedRepSettings) -> Split:
    """The last layer group stays with the client."""
    return split_groups(manifest, manifest.group_names[-1:])


class FedRepClient(RoundClient):
    """First the head alone, then the rest."""

    own: FedRepSettings

    def train(self, start: dict[str, Any]) -> Outcome:
        """Two trainings; what is shared is sent, the head is kept."""
        headed = self.fit(start, only=self.split.personal, epochs=self.own.head_epochs, purpose="head")
        return self.outcome(self.fit(headed, only=self.split.shared))


FEDREP = Method(AveragingStrategy, FedRepClient, split, FedRepSettings, averages=True)
