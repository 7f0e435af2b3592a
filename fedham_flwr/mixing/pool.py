"""The pool of the clients' last models, from which methods mix each client's start."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from fedham_flwr.core.arrays import Storage, fill
from fedham_flwr.core.parameters import Manifest, Params
from fedham_flwr.core.trees import check_like
from fedham_flwr.mixing.bank import Bank


class Pool:
    """Who is in the bank, mixtures of it, and what training tells about these.

    Args:
        manifest: the model's.
        first: the first shared tensors, common to all clients.
        device: where the bank is.
        storage: where it may be; in memory by default.

    Attributes:
        bank: the clients' last models; the common start until they have trained.
        ready: bool [N], who may be mixed into others: the clients of the first round, and later ones that have trained.
        learned: bool [N], of whom the bank has a model that they trained.
    """

    def __init__(self, manifest: Manifest, first: Params, device: torch.device, storage: Storage | None = None) -> None:
        self._first = first
        self.bank = Bank(manifest, tuple(first), device, storage)
        self.ready = torch.zeros(0, dtype=torch.bool)
        self.learned = torch.zeros(0, dtype=torch.bool)

    def add(self, clients: Sequence[str]) -> list[str]:
        """Give new clients a place; nothing changes for the others.

        Those that are there at the start are mixed from the start, later ones when they have trained once.

        Args:
            clients: all ids, in order.

        Returns:
            Those that are new, in the order of their places.
        """
        there = set(self.bank.clients)
        new = [client for client in clients if client not in there]
        if new:
            founding = not self.bank.clients
            self.bank.add(new, self._first)
            self.ready = torch.cat([self.ready, torch.full((len(new),), founding)])
            self.learned = torch.cat([self.learned, torch.zeros(len(new), dtype=torch.bool)])
        return new

    def allowed(self, clients: Sequence[str]) -> Tensor:
        """Whose models each client may get: bool [n, N]. Its own among them if it has trained, or was there first."""
        return self.ready.expand(len(clients), -1)

    def has(self, client: str) -> bool:
        """Whether there is a model that the client trained."""
        return bool(self.learned[self.bank.rows([client])])

    def model(self, client: str) -> Params:
        """A client's last model, live, on the CPU."""
        return {name: tensor.cpu() for name, tensor in self.bank.model(client).items()}

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

    def absorb(self, models: Mapping[str, Params], weights: Tensor, left_out: Tensor | None = None) -> Tensor:
        """Put trained models into the bank, and tell how training lay to the models that were there.

        Args:
            models: of n clients.
            weights: [n, L, N], that their starts were mixed with.
            left_out: as for `mixtures`.

        Returns:
            <start_i - trained_i, w_j> for each layer group, 0 where it was left out; float64 [n, L, N].
        """
        clients, scores = list(models), torch.zeros(weights.shape, dtype=torch.float64)
        for at, group in enumerate(self.bank.groups):
            away = torch.zeros(len(clients), dtype=torch.bool) if left_out is None else left_out[:, at]
            # Clients whose layer was mixed come first: the others' start does not depend on the weights.
            order = away.int().argsort(stable=True)
            mixed = order[: int((~away).sum())]
            names = [clients[i] for i in order.tolist()]
            trained = [models[name] for name in names]
            scores[mixed, at] = self.bank.absorb(group, names, trained, weights[mixed, at]).cpu()
        self._trained(clients)
        return scores

    def put(self, models: Mapping[str, Params]) -> None:
        """Put trained models into the bank."""
        self.bank.put(list(models), list(models.values()))
        self._trained(list(models))

    def state_dict(self) -> Params:
        """The bank, and who may be mixed; live, not copied."""
        return {**self.bank.state_dict(), "ready": self.ready, "learned": self.learned}

    def load(self, state: Mapping[str, Tensor], own: Params) -> None:
        """Copy a server's state into its live tensors `own`, of which the pool's are a part.

        Raises:
            ValueError: it is not of this model and these settings, or a model in it is not finite.
        """
        check_like(state, own)
        for name, tensor in own.items():
            if name.startswith("bank/"):
                fill(tensor, state[name])
            else:
                tensor.copy_(state[name])
        self.bank.check()

    def _trained(self, clients: Sequence[str]) -> None:
        rows = self.bank.rows(clients)
        self.ready[rows] = self.learned[rows] = True
