"""The server half of FedHAM, HAM-style; see algorithms/fedham.py."""

from collections.abc import Mapping, Sequence
from typing import final

import torch
from torch import Tensor
from torch.nn.functional import pad

from fedham_flwr.core.errors import UserError
from fedham_flwr.core.parameters import Params
from fedham_flwr.core.records import MixingWeights
from fedham_flwr.core.seeding import torch_stream
from fedham_flwr.federation.wire import Besides, Upload
from fedham_flwr.mixing.meta_models import by_group, by_unit
from strategies.attention import AttentionStrategy

MOST_PEERS = 20
"""With more clients, `auto` is `mediated`: their models would have to be sent to each of them."""


@final
class FedHAMStrategy(AttentionStrategy):
    """The pool of the clients' models, which it sends (`peers`) or mixes by rows that the clients send (`mediated`)."""

    def begin(self, shared: Params) -> None:
        """Start from one common model.

        Raises:
            UserError: B2 without the transport that it needs.
        """
        self.how = how = self.settings.fedham
        if (how.transport, how.base_objective) == ("mediated", "own"):
            raise UserError('fedham.base-objective="own" needs fedham.transport="peers", not "mediated"')
        super().begin(shared)
        self._mediated = torch.tensor(how.transport == "mediated")
        self._rows: dict[str, Tensor] = {}  # [L, N] of the clients that were asked last
        # What each client's last training gave: with `peers` the row that it used, else its scores and their round.
        self._last, self._scored = torch.zeros(0, self.units, 0), torch.zeros(0, dtype=torch.int64)

    def admit(self, clients: Sequence[str]) -> None:
        """Give new clients the projection of the common start; the first ones settle the transport."""
        how = self.settings.fedham
        if not len(self._scored) and (how.transport, how.base_objective) == ("auto", "hybrid"):
            self._mediated.fill_(len(clients) > MOST_PEERS)
        super().admit(clients)
        self._last = pad(self._last, (0, len(clients), 0, 0, 0, len(clients)))
        self._scored = pad(self._scored, (0, len(clients)))

    def questions(self, round_number: int, clients: Sequence[str]) -> dict[str, Besides]:
        """R1 of `mediated`: the projections, and where a client's last training went."""
        self._rows = {}
        if not self._mediated:
            return {}
        seen = self.seen()
        asked = {}
        for client, place, allowed in self._each(clients):
            scores = {"scores": self._last[place]} if self._scored[place] else {}
            facts = {"place": (place,), "ready": tuple(allowed), "scored": (int(self._scored[place]),)}
            asked[client] = Besides({"projections": seen, **scores}, facts)
        return asked

    def answered(self, round_number: int, replies: Mapping[str, Upload]) -> None:
        """Take the rows; the scores have done their work."""
        self._rows = {client: reply.besides["row"] for client, reply in replies.items()}
        self._scored[self.bank.rows(list(replies))] = 0

    def plan(self, round_number: int, clients: Sequence[str]) -> dict[str, Params]:
        """`mediated`: the hybrid models. `peers`: nothing, but to a client that does not have its own model its own."""
        if self._mediated:
            return self.mixtures(clients, self._weights(clients))  # R4
        without = [c for c in clients if c in self.stateless or (c not in self.trained and self._has(c))]
        return {client: self._model(client) if client in without else {} for client in clients}

    def besides(self, round_number: int, clients: Sequence[str]) -> dict[str, Besides]:
        """R1 of `peers`: the models of each client's peers, and whose they are."""
        if self._mediated:
            return {}
        models = [self._model(client) for client in self.bank.clients]
        sent = {}
        for client, place, allowed in self._each(clients):
            peers = self._choose(round_number, client, place)
            tensors = {f"{peer}/{name}": tensor for peer in peers for name, tensor in models[peer].items()}
            sent[client] = Besides(tensors, {"place": (place,), "ready": tuple(allowed), "peers": tuple(peers)})
        return sent

    def merge(self, round_number: int, uploads: Mapping[str, Upload]) -> None:
        """Put the trained models into the pool; `mediated`: keep what the clients' meta-models will learn from."""
        clients, places = list(uploads), self.bank.rows(list(uploads))
        if not self._mediated:
            self.bank.put(clients, [upload.params for upload in uploads.values()])
            self.ready[places] = self.learned[places] = True
            self._last[places] = torch.stack([uploads[client].besides["row"] for client in clients])
            return
        scores = self.absorb(uploads, self._weights(clients))  # R7
        self._last[places] = by_unit(scores, self.how.unit).float()
        self._scored[places] = round_number

    def mixing_weights(
        self, round_number: int, clients: Sequence[str], uploads: Mapping[str, Upload]
    ) -> MixingWeights | None:
        """The rows as the clients have sent them: weights over peers, and the gate as a client's weight of itself."""
        if self._mediated:
            return MixingWeights(tuple(clients), self.bank.groups, self.bank.clients, self._weights(clients))
        if not uploads:
            return None
        rows = torch.stack([upload.besides["row"] for upload in uploads.values()])
        return MixingWeights(tuple(uploads), self.bank.groups, self.bank.clients, by_group(rows, len(self.bank.groups)))

    def check_besides(self, kind: str, client: str, tensors: Params) -> None:
        """Refuse a row that is not one.

        Raises:
            ValueError: it is missing or of another shape, or its weights are negative or do not sum to 1.
        """
        wanted = {"row"} if (kind == "query") == bool(self._mediated) else set()
        if tensors.keys() != wanted:
            raise ValueError(f"tensors besides the model are {sorted(tensors)}, wanted {sorted(wanted)}")
        shape = (self.units, len(self.bank.clients))
        for row in tensors.values():
            if tuple(row.shape) != shape or row.dtype != torch.float32:
                raise ValueError(f"the row of mixing weights is {row.dtype} {tuple(row.shape)}, wanted float32 {shape}")
            if not bool((row >= 0).all()) or not bool(((row.sum(-1) - 1).abs() < 1e-4).all()):
                raise ValueError("the row of mixing weights has negative weights, or does not sum to 1")
            if bool((row * ~self.allowed([client])).any()):
                raise ValueError("the row of mixing weights has weight on a model that has never been trained")

    def state_dict(self) -> Params:
        """The pool, who may be mixed, and what the last trainings gave; live, not copied."""
        own = {"mediated": self._mediated, "last": self._last, "scored": self._scored}
        return {**super().state_dict(), **own}

    def _weights(self, clients: Sequence[str]) -> Tensor:
        """[n, groups, N]: the rows that came."""
        return by_group(torch.stack([self._rows[client] for client in clients]), len(self.bank.groups))

    def _each(self, clients: Sequence[str]) -> list[tuple[str, int, list[int]]]:
        """Each client with its place, and who may be mixed for it as 0 and 1."""
        places, allowed = self.bank.rows(clients).tolist(), self.allowed(clients).int().tolist()
        return list(zip(clients, places, allowed, strict=True))

    def _has(self, client: str) -> bool:
        """Whether the pool has a model that the client trained."""
        return bool(self.learned[self.bank.rows([client])])

    def _choose(self, round_number: int, client: str, place: int) -> list[int]:
        """The places of the peers whose models a client gets: those of largest weight, and some that are drawn."""
        how = self.settings.fedham
        others = [peer for peer in self.ready.nonzero().flatten().tolist() if peer != place]
        if not 0 < how.peers < len(others):
            return others
        drawn = torch.randperm(len(others), generator=torch_stream(self.settings.seed, "peers", round_number, client))
        order = [others[i] for i in drawn.tolist()]
        weights = self._last[place].mean(0)
        best = sorted(order, key=lambda peer: -float(weights[peer]))  # stable: of equal ones those drawn first
        known = best[: how.peers - round(how.exploration * how.peers)]
        return sorted(known + [peer for peer in order if peer not in known][: how.peers - len(known)])
