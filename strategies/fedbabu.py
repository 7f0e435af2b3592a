"""FedBABU's server half; see algorithms/fedbabu.py."""

from collections.abc import Mapping
from typing import final

from fedham_flwr.algorithms.fedbabu import FedBABUSettings
from fedham_flwr.core.errors import UserError
from fedham_flwr.core.methods import check_resting
from fedham_flwr.core.parameters import Params
from fedham_flwr.federation.contract import Setup
from strategies.averaging import AveragingStrategy


@final
class FedBABUStrategy(AveragingStrategy):
    """R1, R4, R5: the mean of the clients' bodies; the head is never sent, and what becomes of it never seen here.

    Raises:
        UserError: the network's head is zero at first.
    """

    own: FedBABUSettings

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        check_resting('strategy="fedbabu"', setup.initial, self.manifest.groups, self.split.personal)

    def start_from(self, common: Params, own: Mapping[str, Params]) -> None:
        """R5: let fine-tuning start from this body, which other rounds have trained.

        Raises:
            UserError: each client has one of its own.
        """
        if own:
            raise UserError(f'resume="{self.settings.resume}": strategy="fedbabu" starts from one body for all clients')
        self.load_state_dict(common)

    def describe(self) -> str:
        """What is shared, and what follows the rounds."""
        epochs = self.own.fine_tune_epochs
        return f"{super().describe()}, as it is at first; then all layers are fine-tuned for {epochs} epochs"
