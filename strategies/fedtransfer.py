"""The server half of Fed_T and Fed_T_A; see algorithms/fedtransfer.py."""

from collections.abc import Mapping, Sequence
from typing import ClassVar, final

from fedham_flwr.algorithms import fedtransfer
from fedham_flwr.core.parameters import Params, check_like
from fedham_flwr.federation.wire import Besides
from strategies.averaging import AveragingStrategy


@final
class FedTransferStrategy(AveragingStrategy):
    """R1, R4, R5: the mean of whole models, and at the end one message with it for each client's own stage."""

    personal_stage: ClassVar[bool] = True

    @property
    def rounds(self) -> int:
        """None if the personal stage starts from a model that is there already."""
        return 0 if self.settings.resume else super().rounds

    def personal_groups(self) -> Sequence[str]:
        """The client's own block."""
        return fedtransfer.block_groups(self.settings.fedtransfer)

    def begin(self, shared: Params) -> None:
        """Start from the first tensors.

        Raises:
            UserError: the layer groups that are to be frozen are not there.
        """
        fedtransfer.frozen_groups(self.manifest.groups, self.settings.fedtransfer)
        self._own: dict[str, Params] = {}
        super().begin(shared)

    def start_from(self, common: Params, own: Mapping[str, Params]) -> None:
        """R5: let the personal stage start from these, which other rounds have trained."""
        if own:
            self._own = {client: dict(model) for client, model in own.items()}
        else:
            super().load_state_dict(common)

    def plan(self, round_number: int, clients: Sequence[str]) -> dict[str, Params]:
        """R1, R5: w for every client, or the model that the client has had."""
        return {client: self._own[client] for client in clients} if self._own else super().plan(round_number, clients)

    def besides(self, round_number: int, clients: Sequence[str]) -> dict[str, Besides]:
        """Whether what is sent is the client's own."""
        return dict.fromkeys(clients, Besides(facts={fedtransfer.OWN: ()})) if self._own else {}

    def describe(self) -> str:
        """What is shared and personal, and what the personal stage trains."""
        how, manifest = self.settings.fedtransfer, self.manifest
        frozen = fedtransfer.frozen_groups(manifest.groups, how)
        trained = [name for name in manifest.group_names if name not in frozen]
        return (
            f"{super().describe()}; personal stage: {', '.join(trained)} ({manifest.count(trained):,} scalars), "
            f"frozen: {', '.join(frozen) or 'nothing'}"
        )

    def state_dict(self) -> Params:
        """w; or the models that the clients start from, as `<client>/<tensor>`."""
        if not self._own:
            return super().state_dict()
        return {f"{client}/{name}": tensor for client, own in self._own.items() for name, tensor in own.items()}

    def load_state_dict(self, state: Params) -> None:
        """Continue from what `state_dict` gave.

        Raises:
            ValueError: it is not of this model and these clients.
        """
        if self._own:
            check_like(state, self.state_dict())
            self._own = {c: {name: state[f"{c}/{name}"] for name in own} for c, own in self._own.items()}
        else:
            super().load_state_dict(state)
