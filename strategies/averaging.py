"""The server half of every method whose shared groups are one weighted mean: FedAvg and its relatives."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from fedham_flwr.algorithms import fedavg
from fedham_flwr.core.parameters import Params
from fedham_flwr.federation.wire import Upload
from strategies.base import RoundStrategy


class AveragingStrategy(RoundStrategy):
    """One tree of shared tensors; a method names the groups that are not in it."""

    def begin(self, shared: Params) -> None:
        """Start from the first tensors."""
        self._shared = shared

    def plan(self, round_number: int, clients: Sequence[str]) -> dict[str, Params]:
        """The same tensors for every client."""
        return dict.fromkeys(clients, self._shared)  # R1

    def merge(self, round_number: int, uploads: Mapping[str, Upload]) -> None:
        """Replace the shared tensors by the clients' mean, weighted by their training samples."""
        models = [upload.params for upload in uploads.values()]
        self._shared = fedavg.aggregate(models, [upload.examples for upload in uploads.values()])  # R4

    def state_dict(self) -> Params:
        """The shared tensors."""
        return dict(self._shared)

    def load_state_dict(self, state: Params) -> None:
        """Continue from shared tensors.

        Raises:
            ValueError: they are not those of this model.
        """
        self.manifest.check(state, self.shared_names)
        self._shared = {name: state[name] for name in self.shared_names}  # a file has another order
