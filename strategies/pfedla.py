"""The server half of pFedLA and HeurpFedLA; see algorithms/pfedla.py."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple, final

import torch
from torch import Tensor

from fedham_flwr.algorithms import pfedla
from fedham_flwr.algorithms.pfedla import PFedLASettings
from fedham_flwr.core.devices import resolve_device
from fedham_flwr.core.parameters import Params
from fedham_flwr.core.records import MixingWeights
from fedham_flwr.core.seeding import torch_stream
from fedham_flwr.core.sparse import largest
from fedham_flwr.core.trees import read_clients
from fedham_flwr.federation.contract import Setup, Start, Upload
from fedham_flwr.federation.rounds import RoundStrategy
from fedham_flwr.mixing.hypernetworks import Hypernetworks, stored_head
from fedham_flwr.mixing.pool import Pool

AT_ONCE = 256
"""Clients with factorised heads whose weights are made at once, or recorded of an exchange: all are N squared."""


class Weighed(NamedTuple):
    """Who is mixed into whom: for n clients, L layer groups and N peers."""

    rows: Tensor  # int64 [n], the clients' own places in the bank
    logits: Tensor  # float [n, L, N]
    weights: Tensor  # float [n, L, N]
    retained: Tensor  # bool [n, L]
    mixed: Tensor  # bool [n, L, N], the peers that have a part; none in a layer that is retained


@final
class PFedLAStrategy(RoundStrategy):
    """A hypernetwork for each client weighs whose models in the pool are mixed for it.

    Raises:
        UserError: more retained layers than the model has groups.
    """

    own: PFedLASettings

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        self._pool, self._networks = self._empty()
        pfedla.check_retained(self.own.retained_layers, self._pool.bank.groups)

    def add_clients(self, clients: Sequence[str]) -> None:
        """Give new clients a place in the pool and a hypernetwork."""
        if new := self._pool.add(clients):
            self._networks.add([torch_stream(self.settings.seed, "hypernetwork", client=client) for client in new])

    def plan(self, round_number: int, clients: Sequence[str]) -> Mapping[str, Start]:
        """The mixed model of each client, without the layers that it retains."""
        mixed: dict[str, Params] = {}
        size = AT_ONCE if self._networks.head == "factorised" else len(clients) or 1
        for at in range(0, len(clients), size):
            some = clients[at : at + size]
            weighed = self._weigh(round_number, some)
            mixed |= self._pool.mixtures(some, weighed.weights, weighed.retained)  # R3
        return {client: Start(mixed[client], own=True, left_out=self._pool.model(client)) for client in clients}

    def merge(self, round_number: int, uploads: Mapping[str, Upload]) -> None:
        """Put the trained models into the pool, and let the hypernetworks learn from where training went.

        Raises:
            UserError: most hypernetworks diverge.
        """
        weighed = self._weigh(round_number, list(uploads))
        models = {client: upload.params for client, upload in uploads.items()}
        scores = self._pool.absorb(models, weighed.weights, weighed.retained)  # R6
        weights, logits = weighed.weights.double(), weighed.logits.double()
        slope = pfedla.logit_gradient(weights, logits, scores, weighed.mixed, self.own.normaliser)
        self._networks.step(weighed.rows, slope)  # R7

    def mixing_weights(self, round_number: int, clients: Sequence[str], uploads: Mapping[str, Upload]) -> MixingWeights:
        """The weights of a round's mixtures, retained layers included; of at most `AT_ONCE` clients if factorised."""
        some = tuple(clients) if self._networks.head == "dense" else tuple(clients[:AT_ONCE])
        bank, weights = self._pool.bank, self._weigh(round_number, some).weights
        return MixingWeights(some, bank.groups, bank.clients, weights)

    def state_dict(self) -> Params:
        """Pool, embeddings, hypernetworks and their optimiser; live, not copied. Its names tell which head it has."""
        networks = {f"hypernetworks/{name}": tensor for name, tensor in self._networks.params.items()}
        velocity = {f"velocity/{name}": tensor for name, tensor in self._networks.velocity.items()}
        return {**self._pool.state_dict(), **networks, **velocity}

    def load_state_dict(self, state: Params) -> None:
        """Continue from what `state_dict` gave, with the head that it has.

        Raises:
            ValueError: it is not of this model and these settings, or a model is not finite.
        """
        self._pool, self._networks = self._empty()
        if clients := read_clients(state):
            self._networks.head = stored_head(state.get("hypernetworks/peers"), self.own)
            self.add_clients(clients)
        self._pool.load(state, self.state_dict())

    def _empty(self) -> tuple[Pool, Hypernetworks]:
        pool = Pool(self.manifest, self.first, resolve_device(self.settings.device), self.setup.storage)
        return pool, Hypernetworks(self.own, len(pool.bank.groups))

    def _weigh(self, round_number: int, clients: Sequence[str]) -> Weighed:
        """R1 and R2 for some clients."""
        own, rows = self.own, self._pool.bank.rows(clients)
        logits = self._networks.logits(rows)
        allowed = self._pool.ready.expand_as(logits)
        weights = pfedla.mixing_weights(logits, allowed, rows, own.normaliser)  # R1
        if 0 < own.top_k_peers < len(self._pool.bank.clients):
            order = torch.stack([self._order(round_number, client) for client in clients])
            allowed = allowed & largest(weights, own.top_k_peers, order)
            weights = pfedla.mixing_weights(logits, allowed, rows, own.normaliser)
        retained = pfedla.retained(weights, rows, own.retained_layers)  # R2
        retained &= self._has_own(rows, clients)[:, None]
        return Weighed(rows, logits, weights, retained, allowed & ~retained[:, :, None])

    def _has_own(self, rows: Tensor, clients: Sequence[str]) -> Tensor:
        """Which clients have layers of their own to start from: bool [n].

        A client that has never trained has the common model, unless it came late. One that has trained has what it
        kept, unless it said that it lost it, or trained in a run that this one continues.
        """
        trained, stateless = self.progress.trained, self.progress.stateless
        kept = torch.tensor([c in trained and c not in stateless for c in clients], dtype=torch.bool)
        return torch.where(self._pool.learned[rows], kept, self._pool.ready[rows])

    def _order(self, round_number: int, client: str) -> Tensor:
        """In which order equal weights are kept: the client's own first, then as drawn for the round."""
        peers, own = len(self._pool.bank.clients), int(self._pool.bank.rows([client]))
        drawn = torch.randperm(peers, generator=torch_stream(self.settings.seed, "peers", round_number, client))
        return torch.cat([torch.tensor([own]), drawn[drawn != own]])
