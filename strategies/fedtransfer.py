"""The server half of Fed_T and Fed_T_A; see algorithms/fedtransfer.py."""

from collections.abc import Mapping, Sequence
from typing import final

from fedham_flwr.algorithms import fedtransfer
from fedham_flwr.algorithms.fedtransfer import FedTransferSettings
from fedham_flwr.core.parameters import Params
from fedham_flwr.core.trees import check_like
from fedham_flwr.federation.contract import Setup, Start
from strategies.averaging import AveragingStrategy


@final
class FedTransferStrategy(AveragingStrategy):
    """R1, R4, R5: the mean of whole models, and at the end one message with it for each client's own stage.

    Raises:
        UserError: the layer groups that are to be frozen are not there.
    """

    own: FedTransferSettings

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        self._frozen = fedtransfer.frozen_groups(self.manifest.groups, self.own)
        self._models: dict[str, Params] = {}  # of each client, where the stage starts from models of its own

    def start_from(self, common: Params, own: Mapping[str, Params]) -> None:
        """R5: let the personal stage start from these, which other rounds have trained."""
        if own:
            self._models = {client: dict(model) for client, model in own.items()}
        else:
            super().load_state_dict({**common, **self._merging.state_dict()})

    def plan(self, round_number: int, clients: Sequence[str]) -> Mapping[str, Start]:
        """R1, R5: w for every client, or the model that the client has had."""
        if not self._models:
            return super().plan(round_number, clients)
        return {client: Start(self._models[client], own=True) for client in clients}

    def describe(self) -> str:
        """What is shared and personal, and what the personal stage trains."""
        manifest = self.manifest
        trained = [name for name in manifest.group_names if name not in self._frozen]
        return (
            f"{super().describe()}; personal stage: {', '.join(trained)} ({manifest.count(trained):,} scalars), "
            f"frozen: {', '.join(self._frozen) or 'nothing'}"
        )

    def state_dict(self) -> Params:
        """w; or the models that the clients start from, as `<client>/<tensor>`."""
        if not self._models:
            return super().state_dict()
        return {f"{client}/{name}": tensor for client, own in self._models.items() for name, tensor in own.items()}

    def load_state_dict(self, state: Params) -> None:
        """Continue from what `state_dict` gave.

        Raises:
            ValueError: it is not of this model and these clients.
        """
        if self._models:
            check_like(state, self.state_dict())
            self._models = {c: {name: state[f"{c}/{name}"] for name in own} for c, own in self._models.items()}
        else:
            super().load_state_dict(state)
