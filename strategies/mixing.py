"""What the methods share that mix each client's start from a bank of all clients' last models."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from fedham_flwr.core.devices import resolve_device
from fedham_flwr.core.parameters import Params, check_like, read_clients
from fedham_flwr.federation.wire import Upload
from fedham_flwr.mixing.bank import Bank
from strategies.base import RoundStrategy


class MixingStrategy(RoundStrategy):
    """The bank of the clients' models: who is in it, mixtures of it, and what training tells about these.

    Attributes:
        bank: the clients' last models; the common start until they have trained.
        ready: [N], who may be mixed into others: the clients of the first round, and later ones that have trained.
        learned: [N], of whom the bank has a model that they trained.
    """

    def personal_groups(self) -> Sequence[str]:
        """Every layer group is shared."""
        return ()

    def personal_tensors(self) -> Sequence[str]:
        """The running statistics."""
        return tuple(name for group in self.manifest.groups for name in group.buffers)

    def begin(self, shared: Params) -> None:
        """Start from one common model; the clients get their places when they come."""
        self._initial = shared
        self.bank = Bank(self.manifest, self.shared_names, resolve_device(self.settings.device))
        self.ready = torch.zeros(0, dtype=torch.bool)
        self.learned = torch.zeros(0, dtype=torch.bool)

    def enrol(self, clients: Sequence[str]) -> None:
        """Give new clients a place in the bank; nothing changes for the others.

        Those that are there at the start are mixed from the start, later ones when they have trained once.
        """
        new = [client for client in clients if client not in self.bank.clients]
        if not new:
            return
        founding = not self.bank.clients
        self.bank.add(new, self._initial)
        self.ready = torch.cat([self.ready, torch.full((len(new),), founding)])
        self.learned = torch.cat([self.learned, torch.zeros(len(new), dtype=torch.bool)])
        self.admit(new)

    def references(self, round_number: int, clients: Sequence[str]) -> dict[str, Params]:
        """What the clients were sent, and of what they were not their last models, which they have themselves."""
        sent = super().references(round_number, clients)
        return {client: {**self._model(client), **sent[client]} for client in clients}

    def admit(self, clients: Sequence[str]) -> None:
        """Give new clients, which have places in the bank, what else the method has for each; nothing by default.

        Args:
            clients: ids, in the order of their places.
        """

    def mixtures(self, clients: Sequence[str], weights: Tensor, left_out: Tensor | None = None) -> dict[str, Params]:
        """The mixed model of each client.

        Args:
            clients: n ids.
            weights: [n, L, N].
            left_out: bool [n, L], the layer groups that a client is not given; none by default.
        """
        starts: dict[str, Params] = {client: {} for client in clients}
        for at, group in enumerate(self.bank.groups):
            given = torch.ones(len(clients), dtype=torch.bool) if left_out is None else ~left_out[:, at]
            mixed = self.bank.mix(group, weights[given, at]).cpu()
            receivers = [client for client, gets in zip(clients, given.tolist(), strict=True) if gets]
            for client, row in zip(receivers, mixed, strict=True):
                starts[client] |= self.bank.tensors(group, row)
        return starts

    def absorb(self, uploads: Mapping[str, Upload], weights: Tensor, left_out: Tensor | None = None) -> Tensor:
        """Put the trained models into the bank, and tell how training lay to the models that were there.

        Args:
            uploads: of n clients.
            weights: [n, L, N], that their starts were mixed with.
            left_out: as for `mixtures`.

        Returns:
            <start_i - upload_i, w_j> for each layer group, 0 where it was left out; float64 [n, L, N].
        """
        clients, scores = list(uploads), torch.zeros(weights.shape, dtype=torch.float64)
        for at, group in enumerate(self.bank.groups):
            away = torch.zeros(len(clients), dtype=torch.bool) if left_out is None else left_out[:, at]
            # Clients whose layer was mixed come first: the others' start does not depend on the weights.
            order = away.int().argsort(stable=True)
            mixed = order[: int((~away).sum())]
            names = [clients[i] for i in order.tolist()]
            models = [uploads[name].params for name in names]
            scores[mixed, at] = self.bank.absorb(group, names, models, weights[mixed, at]).cpu()
        rows = self.bank.rows(clients)
        self.ready[rows] = self.learned[rows] = True
        return scores

    def state_dict(self) -> Params:
        """The bank, and who may be mixed; live, not copied."""
        return {**self.bank.state_dict(), "ready": self.ready, "learned": self.learned}

    def load_state_dict(self, state: Params) -> None:
        """Continue from a bank and what else there is.

        Raises:
            ValueError: they are not those of this model and these settings, or a model is not finite.
        """
        self.begin(self._initial)
        self.enrol(read_clients(state))
        own = self.state_dict()
        check_like(state, own)
        for name, tensor in own.items():
            tensor.copy_(state[name])
        self.bank.check()

    def _model(self, client: str) -> Params:
        """A client's last model, live, on the CPU."""
        return {name: tensor.cpu() for name, tensor in self.bank.model(client).items()}
