"""The server half of every method whose shared tensors are one weighted mean: FedAvg and its relatives."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

from fedham_flwr.core.parameters import Params
from fedham_flwr.core.server_optimizers import STATE
from fedham_flwr.federation.contract import Setup, Start, Upload
from fedham_flwr.federation.merging import Merging
from fedham_flwr.federation.rounds import RoundStrategy


class AveragingStrategy(RoundStrategy):
    """One tree of shared tensors; what is not in it is up to the method's split.

    Args:
        setup: the run's.

    Attributes:
        aggregates: the settings under `server.` say what becomes of the clients' tensors. A method of one's own whose
            `merge` does not call this one's says False, so that whoever gives them is told.
        shared: the shared tensors as they are now, by name. They are on their way to clients, so a method of one's own
            that changes them replaces the whole mapping, after `merge` has made it the mean, or what `server.` says.

    Raises:
        UserError: a round has too few clients for `server.aggregation`.
    """

    aggregates: ClassVar[bool] = True

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        self.shared = self.first
        members = len(setup.roster.nodes) - len(self.progress.novel) if self.rounds else 0
        self._merging = Merging(self.settings, self.first, self.manifest.buffers, members)

    def plan(self, round_number: int, clients: Sequence[str]) -> Mapping[str, Start]:
        """The same tensors for every client.

        Raises:
            ValueError: a method of one's own has made `shared` something else than the model's shared tensors.
        """
        self.manifest.check(self.shared, self.split.shared, finite=True)
        return dict.fromkeys(clients, Start(self.shared))  # R1

    def merge(self, round_number: int, uploads: Mapping[str, Upload]) -> None:
        """Replace the shared tensors by the clients' mean, weighted by their training samples, or as `server.` says.

        Raises:
            UserError: the replies are too few for `server.aggregation`, or `server.optimizer` diverged.
        """
        models = [upload.params for upload in uploads.values()]
        examples = [upload.examples for upload in uploads.values()]
        self.shared = self._merging.merge(round_number, self.shared, models, examples)  # R4

    def describe(self) -> str:
        """What is shared and what is personal, and what `server.` says."""
        return super().describe() + self._merging.describe()

    def state_dict(self) -> Params:
        """The shared tensors, and what the server's optimiser remembers."""
        return {**self.shared, **self._merging.state_dict()}

    def load_state_dict(self, state: Params) -> None:
        """Continue from what `state_dict` gave.

        Raises:
            ValueError: it is not of this model and these settings.
        """
        shared = {name: tensor for name, tensor in state.items() if not name.startswith(STATE)}
        self.manifest.check(shared, self.split.shared)
        self._merging.load_state_dict(state)
        self.shared = {name: shared[name] for name in self.split.shared}  # a file has another order
