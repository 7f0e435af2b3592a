"""The server half of FedFomo; see algorithms/fedfomo.py."""

from collections.abc import Mapping, Sequence
from typing import final

import torch
from torch import Tensor

from fedham_flwr.algorithms import fedfomo
from fedham_flwr.algorithms.fedfomo import MOST, FedFomoSettings
from fedham_flwr.core.devices import resolve_device
from fedham_flwr.core.errors import UserError
from fedham_flwr.core.imports import is_path
from fedham_flwr.core.neighbours import nearest_and_drawn
from fedham_flwr.core.parameters import Params
from fedham_flwr.core.records import MixingWeights
from fedham_flwr.core.seeding import torch_stream
from fedham_flwr.core.trees import read_clients
from fedham_flwr.federation.contract import Extras, Setup, Start, Upload
from fedham_flwr.federation.rounds import RoundStrategy
from fedham_flwr.mixing.affinity import NAMES, Affinity
from fedham_flwr.mixing.pool import Pool
from fedham_flwr.mixing.rows import Row, mixing_weights


@final
class FedFomoStrategy(RoundStrategy):
    """The pool of the clients' models, of which each gets a few, and who has gained from whom.

    Raises:
        UserError: no client has validation samples.
    """

    own: FedFomoSettings

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        counts = [profile.counts.get("validation", 0) for profile in setup.roster.profiles.values()]
        fraction = self.settings.validation_fraction
        if (not fraction and not is_path(self.settings.dataset)) or (counts and not any(counts)):
            raise UserError(
                'strategy="fedfomo" weighs models by their loss on validation samples, and no client has any with '
                f"validation-fraction={fraction:g}: wanted more"
            )
        self._pool, self._affinity = self._empty(), Affinity()

    def add_clients(self, clients: Sequence[str]) -> None:
        """Give new clients a place in the pool, with the common start."""
        self._pool.add(clients)

    def plan(self, round_number: int, clients: Sequence[str]) -> Mapping[str, Start]:
        """R1, R2: each client's own model, and those of its peers by their places."""
        pool, starts = self._pool, {}
        sent: dict[int, Params] = {}  # what several clients get is read once
        for client, place in zip(clients, pool.bank.rows(clients).tolist(), strict=True):
            peers = self._choose(round_number, client, place)
            for peer in peers:
                sent.setdefault(peer, pool.model(pool.bank.clients[peer]))
            tensors = {f"{peer}/{name}": tensor for peer in peers for name, tensor in sent[peer].items()}
            facts = {"place": (place,), "peers": tuple(peers)}
            starts[client] = Start(pool.model(client), Extras(tensors, facts), own=True)
        return starts

    def merge(self, round_number: int, uploads: Mapping[str, Upload]) -> None:
        """R6: put the trained models into the pool, and add up what clients gained from others."""
        self._pool.put({client: upload.params for client, upload in uploads.items()})
        for place, upload in zip(self._pool.bank.rows(list(uploads)).tolist(), uploads.values(), strict=True):
            others = upload.extras["places"] != place
            self._affinity.update(place, upload.extras["places"][others], upload.extras["omega"][others])

    def mixing_weights(
        self, round_number: int, clients: Sequence[str], uploads: Mapping[str, Upload]
    ) -> MixingWeights | None:
        """The shares that the clients mixed with; a client that stayed with a model of its own has weight 1 of that."""
        if not uploads:
            return None
        rows = {}
        for place, (client, upload) in zip(self._pool.bank.rows(list(uploads)), uploads.items(), strict=True):
            a = torch.tensor(fedfomo.shares(upload.extras["omega"].tolist()), dtype=torch.float32)
            moved = bool(a.any())
            rows[client] = Row(upload.extras["places"], a[None]) if moved else Row(place[None], torch.ones(1, 1))
        return mixing_weights(self._pool, rows)

    def check_extras(self, stage: str, client: str, tensors: Params) -> None:
        """Refuse weights that are none.

        Raises:
            ValueError: they are missing or of another shape, of models that were not sent, or no numbers.
        """
        if tensors.keys() != {"places", "omega"}:
            raise ValueError(f"tensors other than the model's are {sorted(tensors)}, wanted ['omega', 'places']")
        places, omega = tensors["places"], tensors["omega"]
        kinds = (places.dtype, omega.dtype) == (torch.int64, torch.float32)
        if not kinds or places.dim() != 1 or places.shape != omega.shape:
            raise ValueError("wanted int64 places and float32 weights, one of each for a model")
        known = self._pool.learned.clone()
        known[self._pool.bank.rows([client])] = True
        inside = bool(((places >= 0) & (places < len(known))).all())
        if len(places) > self.own.models or not inside or not bool(known[places].all()):
            raise ValueError("the weights are of models that were not sent")
        if not bool((places[1:] > places[:-1]).all()):
            raise ValueError("the places of the weighed models are not in order, each once")
        if not bool((omega.abs() <= MOST).all()):
            raise ValueError(f"a weight is no number of at most {MOST:g}")

    def state_dict(self) -> Params:
        """The pool, live, and the affinities."""
        return {**self._pool.state_dict(), **self._affinity.state_dict()}

    def load_state_dict(self, state: Params) -> None:
        """Continue from what `state_dict` gave.

        Raises:
            ValueError: it is not of this model and these settings, or a model is not finite.
        """
        self._pool = self._empty()
        self.add_clients(read_clients(state))
        self._affinity.load(state, len(self._pool.bank.clients))
        self._pool.load({name: tensor for name, tensor in state.items() if name not in NAMES}, self._pool.state_dict())

    def _empty(self) -> Pool:
        return Pool(self.manifest, self.first, resolve_device(self.settings.device), self.setup.storage)

    def _choose(self, round_number: int, client: str, place: int) -> list[int]:
        """R1: the places of the peers whose models a client gets: those of largest affinity, and some drawn."""
        there = self._pool.learned.nonzero().flatten()
        others: Tensor = there[there != place]
        draws = torch_stream(self.settings.seed, "peers", round_number, client)
        count = self.own.models - 1
        drawn = int((torch.rand(count, generator=draws) < fedfomo.explored(self.own, round_number)).sum())
        near = self._affinity.row(place, len(self._pool.bank.clients))
        return nearest_and_drawn(near, others, count, drawn / max(1, count), draws).tolist()
