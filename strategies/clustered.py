"""The server half of clustered FedAvg; see algorithms/clustered.py."""

from collections.abc import Mapping, Sequence
from typing import final

from fedham_flwr.algorithms import clustered
from fedham_flwr.algorithms.clustered import ClusteredSettings
from fedham_flwr.core.client_tables import read_client_table
from fedham_flwr.core.parameters import Params
from fedham_flwr.federation.contract import Setup, Start, Upload
from fedham_flwr.federation.rounds import RoundStrategy

MODEL = "group/"
"""Before a group's name and a tensor's, in the server's state."""


@final
class ClusteredStrategy(RoundStrategy):
    """A model for each group.

    Raises:
        UserError: the table of groups can't be read.
    """

    own: ClusteredSettings

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        self._table = read_client_table("clustered.table", self.own.table, "group") if self.own.table else {}
        self._group: dict[str, str] = {}
        self._models: dict[str, Params] = {}

    def add_clients(self, clients: Sequence[str]) -> None:
        """Give new clients their groups, and new groups the common start.

        Raises:
            UserError: a client is of no group.
        """
        for client in clients:
            if client not in self._group:
                self._group[client] = clustered.group_of(client, self._table, self.settings.groups_used)
                self._models.setdefault(self._group[client], self.first)

    def plan(self, round_number: int, clients: Sequence[str]) -> Mapping[str, Start]:
        """R1."""
        starts = {group: Start(model, own=True) for group, model in self._models.items()}
        return {client: starts[self._group[client]] for client in clients}

    def merge(self, round_number: int, uploads: Mapping[str, Upload]) -> None:
        """R3."""
        told = {client: (upload.params, upload.examples) for client, upload in uploads.items()}
        self._models = clustered.merge(self._models, {client: self._group[client] for client in told}, told)

    def state_dict(self) -> Params:
        """The groups' models."""
        return {
            f"{MODEL}{group}/{name}": tensor for group, model in self._models.items() for name, tensor in model.items()
        }

    def load_state_dict(self, state: Params) -> None:
        """Continue from what `state_dict` gave.

        Raises:
            ValueError: it is not of this model.
        """
        models: dict[str, Params] = {}
        for key, tensor in state.items():
            group, _, name = key.removeprefix(MODEL).rpartition("/")
            if not key.startswith(MODEL) or not group:
                raise ValueError(f"there is a tensor '{key}': wanted '{MODEL}', a group's name and a tensor's")
            models.setdefault(group, {})[name] = tensor
        for model in models.values():
            self.manifest.check(model, self.split.shared)
        self._models = {group: {name: model[name] for name in self.split.shared} for group, model in models.items()}
