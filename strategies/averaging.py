"""The server half of every method whose shared tensors are one weighted mean: FedAvg and its relatives."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from fedham_flwr.algorithms import fedavg
from fedham_flwr.core.parameters import Params
from fedham_flwr.federation.contract import Setup, Start, Upload
from fedham_flwr.federation.rounds import RoundStrategy


class AveragingStrategy(RoundStrategy):
    """One tree of shared tensors; what is not in it is up to the method's split.

    Args:
        setup: the run's.

    Attributes:
        shared: the shared tensors as they are now, by name. They are on their way to clients, so a method of one's own
            that changes them replaces the whole mapping, after `merge` has made it the mean.
    """

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        self.shared = self.first

    def plan(self, round_number: int, clients: Sequence[str]) -> Mapping[str, Start]:
        """The same tensors for every client.

        Raises:
            ValueError: a method of one's own has made `shared` something else than the model's shared tensors.
        """
        self.manifest.check(self.shared, self.split.shared, finite=True)
        return dict.fromkeys(clients, Start(self.shared))  # R1

    def merge(self, round_number: int, uploads: Mapping[str, Upload]) -> None:
        """Replace the shared tensors by the clients' mean, weighted by their training samples."""
        models = [upload.params for upload in uploads.values()]
        self.shared = fedavg.aggregate(models, [upload.examples for upload in uploads.values()])  # R4

    def state_dict(self) -> Params:
        """The shared tensors."""
        return dict(self.shared)

    def load_state_dict(self, state: Params) -> None:
        """Continue from shared tensors.

        Raises:
            ValueError: they are not those of this model.
        """
        self.manifest.check(state, self.split.shared)
        self.shared = {name: state[name] for name in self.split.shared}  # a file has another order
