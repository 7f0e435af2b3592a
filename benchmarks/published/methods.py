"""pFedMe as its authors' program runs and scores it, which is not as this project does."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Annotated

from annotated_types import Ge

from fedham_flwr import AveragingStrategy, RoundClient
from fedham_flwr.algorithms.pfedme import METHOD, Envelope, PFedMeSettings
from fedham_flwr.core.parameters import Params
from fedham_flwr.core.seeding import stream
from fedham_flwr.federation.contract import Outcome, Upload


@dataclass(frozen=True)
class CopiesSettings(PFedMeSettings):
    """Settings under `copies.`: those of pFedMe without effect of `mixing`, which is 1.

    Attributes:
        averaged: how many clients' copies the server takes the mean of, drawn anew in each round.
    """

    averaged: Annotated[int, Ge(1)] = 5


class CopiesStrategy(AveragingStrategy):
    """All clients train, and the mean is that of a few."""

    own: CopiesSettings

    def merge(self, round_number: int, uploads: Mapping[str, Upload]) -> None:
        """R5, with beta = 1."""
        draw = stream(self.settings.seed, "averaged", round_number)
        chosen = draw.choice(sorted(uploads), min(self.own.averaged, len(uploads)), replace=False)
        super().merge(round_number, {client: uploads[client] for client in sorted(map(str, chosen))})


class CopiesClient(RoundClient):
    """R2, R3; what is scored as the client's own model is its copy w_k, not theta_k."""

    own: CopiesSettings

    def train(self, start: Params) -> Outcome:
        """The copy is sent, and used."""
        rule = Envelope(
            {name: start[name] for name in self.job.trainer.parameter_names}, self.own, self.training.learning_rate
        )
        sent = self.fit(start, rule=rule)
        return Outcome(sent, sent)


COPIES = replace(
    METHOD, strategy=CopiesStrategy, client=CopiesClient, settings=CopiesSettings, name="copies", search={}
)
