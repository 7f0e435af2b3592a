"""The server half of FedHAM, HAM-style; see algorithms/fedham.py."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import final

import torch
from torch import Tensor
from torch.nn.functional import pad

from fedham_flwr.algorithms.fedham import FedHAMSettings
from fedham_flwr.core.devices import resolve_device
from fedham_flwr.core.errors import UserError
from fedham_flwr.core.parameters import Params
from fedham_flwr.core.records import MixingWeights
from fedham_flwr.core.trees import read_clients, side_by_side
from fedham_flwr.federation.contract import Extras, Setup, Start, Upload
from fedham_flwr.federation.rounds import RoundStrategy
from fedham_flwr.mixing.attention import Projections
from fedham_flwr.mixing.peers import TOGETHER, Choice, choose, others_of
from fedham_flwr.mixing.pool import Pool
from fedham_flwr.mixing.rows import Row, dense, hybrids, learn, mixing_weights

MOST_PEERS = 20
"""With more clients, `auto` is `mediated`: their models would have to be sent to each of them."""


@final
class FedHAMStrategy(RoundStrategy):
    """The pool of the clients' models, which it sends (`peers`) or mixes by rows that the clients send (`mediated`).

    Raises:
        UserError: B2 without the transport that it needs; B2 or `mediated` without plain SGD.
    """

    own: FedHAMSettings

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        if (self.own.transport, self.own.base_objective) == ("mediated", "own"):
            raise UserError('fedham.base-objective="own" needs fedham.transport="peers", not "mediated"')
        if self.own.base_objective == "own":
            self._check_plain('fedham.base-objective="own"')
        if self.own.transport == "mediated":
            self._check_plain('fedham.transport="mediated"')
        self._mediated = torch.tensor(self.own.transport == "mediated")
        # Of the clients asked last: whom they look at, the rows [L, M] that they answered, whose models they were sent.
        self._places: dict[str, Tensor] = {}
        self._rows: dict[str, Row] = {}
        self._choices: dict[str, Choice] = {}
        # The last two: of each client's last training with `mediated` its scores, and the round.
        self._pool, self._projections, self._last, self._scored = self._empty()

    def add_clients(self, clients: Sequence[str]) -> None:
        """Give new clients a place and the common start's projection; the first ones settle the transport."""
        new = self._pool.add(clients)
        if not new:
            return
        if not len(self._scored) and (self.own.transport, self.own.base_objective) == ("auto", "hybrid"):
            self._mediated.fill_(len(new) > MOST_PEERS)
            if self._mediated:
                self._check_plain(f'fedham.transport="auto" is "mediated" with {len(new)} clients, which')
        self._projections.add(new)
        self._last = pad(self._last, (0, self._width - self._last.shape[-1], 0, 0, 0, len(new)))
        self._scored = pad(self._scored, (0, len(new)))

    def questions(self, round_number: int, clients: Sequence[str]) -> dict[str, Extras]:
        """R1: the projections; of `mediated` also where a client's last training went, and of few `peers` of all."""
        self._rows, pool, few = {}, self._pool, bool(self._mediated) and self._projections.few
        if self._mediated:
            self._places = self._projections.candidates(round_number, clients)
        else:
            some = [client for client in clients if 0 < self.own.peers < len(others_of(pool, client))]
            self._places = dict.fromkeys(some, torch.arange(len(pool.ready)))
        seen, shares, asked = self._projections.seen(), self._projections.shares(), {}
        for (client, at), place in zip(self._places.items(), pool.bank.rows(list(self._places)).tolist(), strict=True):
            scores = {"scores": self._last[place]} if self._scored[place] else {}
            which = {"scored": (int(self._scored[place]),)} if self._mediated else {"peers": ()}
            facts = {"place": (at.tolist().index(place),), **which, **({"few": (1,)} if few else {})}
            looks = {"projections": seen[at] if few else seen, "shares": shares[at]}
            asked[client] = Extras({**looks, **scores}, facts)
        return asked

    def answered(self, round_number: int, replies: Mapping[str, Upload]) -> None:
        """Take the rows; the scores have done their work."""
        units = self._projections.units
        self._rows = {name: Row(self._places[name], units.rows(told.extras["row"])) for name, told in replies.items()}
        self._scored[self._pool.bank.rows(list(replies))] = 0

    def plan(self, round_number: int, clients: Sequence[str]) -> Mapping[str, Start]:
        """R1, R4: hybrids (`mediated`); or peers' models and projections, and a client's own model if it lacks it."""
        pool = self._pool
        if self._mediated:
            mixed = hybrids(pool, {client: self._rows[client] for client in clients})
            return {client: Start(mixed[client], own=True, left_out=pool.model(client)) for client in clients}
        trained, stateless = self.progress.trained, self.progress.stateless
        models = [pool.model(client) for client in pool.bank.clients]
        starts, seen, shares = {}, self._projections.seen(), self._projections.shares()
        pick = partial(choose, pool, self.own, self.settings.seed, round_number)
        choices = {client: pick(client, self._rows.get(client)) for client in clients}
        self._choices |= choices  # some clients may be planned for once more, without the others
        rows = {client: choice.together for client, choice in choices.items() if len(choice.together.places)}
        mixed = pool.mixtures(list(rows), dense(pool, rows)) if rows else {}
        for (client, (peers, more)), place in zip(choices.items(), pool.bank.rows(clients).tolist(), strict=True):
            together = more.places.tolist()
            tensors = {f"{peer}/{name}": tensor for peer in peers for name, tensor in models[peer].items()}
            tensors |= {f"{TOGETHER}{name}": tensor for name, tensor in mixed.get(client, {}).items()}
            tensors |= {"projections": seen[sorted([*peers, *together, place])], "shares": shares}
            extras = Extras(tensors, {"place": (place,), "peers": tuple(peers), "together": tuple(together)})
            without = client in stateless or (client not in trained and pool.has(client))
            starts[client] = Start(models[place] if without else {}, extras, own=True, left_out=models[place])
        return starts

    def merge(self, round_number: int, uploads: Mapping[str, Upload]) -> None:
        """Put the trained models into the pool; `mediated`: keep what the clients' meta-models will learn from."""
        clients, places = list(uploads), self._pool.bank.rows(list(uploads))
        models = {client: upload.params for client, upload in uploads.items()}
        samples = [upload.examples for upload in uploads.values()]
        if not self._mediated:
            self._pool.put(models)
            self._projections.update(self._started(uploads), samples)
            return
        scores = side_by_side(list(learn(self._pool, models, self._rows).values()))  # R7
        self._projections.update({client: self._rows[client] for client in clients}, samples)
        self._last[places, :, : scores.shape[-1]] = self._projections.units.scores(scores).float()
        self._scored[places] = round_number

    def mixing_weights(
        self, round_number: int, clients: Sequence[str], uploads: Mapping[str, Upload]
    ) -> MixingWeights | None:
        """The rows as the clients have sent them: weights over peers, and the gate as a client's weight of itself."""
        bank = self._pool.bank
        if self._mediated:
            return mixing_weights(self._pool, {client: self._rows[client] for client in clients})
        if not uploads:
            return None
        rows = [self._row(client, upload).by_group(len(bank.groups)) for client, upload in uploads.items()]
        return MixingWeights(tuple(uploads), bank.groups, bank.clients, torch.stack(rows).float())

    def check_extras(self, stage: str, client: str, tensors: Params) -> None:
        """Refuse a row that is not one.

        Raises:
            ValueError: it is missing or of another shape, or its weights are negative or do not sum to 1.
        """
        wanted = {"row"} if stage == "query" or not self._mediated else set()
        if tensors.keys() != wanted:
            raise ValueError(f"tensors other than the model's are {sorted(tensors)}, wanted {sorted(wanted)}")
        ready = self._pool.ready[self._places[client]] if self._mediated else self._pool.ready
        shape = (len(self._projections.units), len(ready))
        for row in tensors.values():
            if tuple(row.shape) != shape or row.dtype != torch.float32:
                raise ValueError(f"the row of mixing weights is {row.dtype} {tuple(row.shape)}, wanted float32 {shape}")
            if not bool((row >= 0).all()) or not bool(((row.sum(-1) - 1).abs() < 1e-4).all()):
                raise ValueError("the row of mixing weights has negative weights, or does not sum to 1")
            if bool((row * ~ready).any()):
                raise ValueError("the row of mixing weights has weight on a model that has never been trained")

    def state_dict(self) -> Params:
        """The pool, what training added to its models, the transport, and what it gave last; live, not copied."""
        own = {"mediated": self._mediated, "scored": self._scored, **({"last": self._last} if self._mediated else {})}
        return {**self._pool.state_dict(), **self._projections.state_dict(), **own}

    def load_state_dict(self, state: Params) -> None:
        """Continue from a pool; its projections are made anew.

        Raises:
            ValueError: it is not of this model and these settings, or a model is not finite.
        """
        self._pool, self._projections, self._last, self._scored = self._empty()
        self._projections.check(state, "fedham")
        self.add_clients(read_clients(state))
        self._mediated.fill_(bool(state.get("mediated", self._mediated).any()))  # as the first clients settled it
        self._last = self._last.new_zeros(*self._last.shape[:2], self._width)
        if not self._mediated:  # an earlier version kept rows of its peers
            state = {name: tensor for name, tensor in state.items() if name != "last"}
        self._pool.load(state, self.state_dict())
        self._projections.update_all()

    def _check_plain(self, what: str) -> None:
        self.settings.local_training(1).check_plain(what)

    def _empty(self) -> tuple[Pool, Projections, Tensor, Tensor]:
        pool = Pool(self.manifest, self.first, resolve_device(self.settings.device), self.setup.storage)
        looks = Projections(self.own, pool, self.settings.seed)
        return pool, looks, torch.zeros(0, len(looks.units), 0), torch.zeros(0, dtype=torch.int64)

    @property
    def _width(self) -> int:
        """Numbers of a row of scores: of the most models that a client is told of; none with `peers`."""
        return self._projections.width if self._mediated else 0

    def _started(self, uploads: Mapping[str, Upload]) -> dict[str, Row]:
        """What clients that mix have trained from: their hybrids, by the rows that they tell; with B2 their models."""
        if self.own.base_objective == "own":
            return {client: Row(self._pool.bank.rows([client]), torch.ones(1, 1)) for client in uploads}
        return {client: self._row(client, upload) for client, upload in uploads.items()}

    def _row(self, client: str, upload: Upload) -> Row:
        """The row of a client's hybrid; the weights of those that it got as one model are as in that."""
        told = Row(torch.arange(len(self._pool.ready)), self._projections.units.rows(upload.extras["row"]))
        return told.spread(self._choices[client].together)
