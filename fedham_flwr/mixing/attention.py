"""What the meta-models of FedHAM and AMN look at: projections of the models that a server holds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import normalize, pad

from fedham_flwr.algorithms import amn
from fedham_flwr.algorithms.amn import AttentionSettings
from fedham_flwr.core.errors import UserError
from fedham_flwr.core.neighbours import nearest_and_drawn
from fedham_flwr.core.parameters import Params
from fedham_flwr.core.seeding import torch_stream
from fedham_flwr.core.threads import in_threads
from fedham_flwr.mixing.meta_models import Projection
from fedham_flwr.mixing.pool import Pool
from fedham_flwr.mixing.rows import Row, Units

LEAST = 1e-6
"""The least that a model counts for its age, so that it may be mixed however late it is."""
ROUNDING = 1e-4
"""Of the length of a change of a model: what differs from the others' changes by no more than this is rounding."""


class Lists(NamedTuple):
    """Whom each of n clients looks at, M models each, or fewer; what is too much of a list may not be mixed."""

    places: Mapping[str, Tensor]  # client id -> int64 [M] or shorter, in order
    seen: Tensor  # float32 [n, M, L, d], centred projections (7); [N, L, d] where everybody looks at all models
    own: Tensor  # int64 [n], where in its list a client is
    allowed: Tensor  # [n, M], who may be mixed, and with which share; see `amn.attend`

    def rows(self, weights: Tensor) -> dict[str, Row]:
        """The clients' rows.

        Args:
            weights: [n, G, M] by layer group, or [n, 1, M].
        """
        pairs = zip(self.places.items(), weights, strict=True)
        return {client: Row(places, row[:, : len(places)]) for (client, places), row in pairs}


class Projections:
    """The projections of a pool's models, kept up to date.

    Args:
        settings: of the meta-models.
        pool: whose models are looked at.
        seed: the run's.

    Attributes:
        units: what has a row of its own.

    Raises:
        UserError: there is to be a number for each pair of clients, and few of these are to be looked at.
    """

    def __init__(self, settings: AttentionSettings, pool: Pool, seed: int) -> None:
        if settings.candidates and settings.peer_bias:
            raise UserError(
                f"peer-bias=true keeps a number for every pair of clients, and candidates={settings.candidates} looks "
                "at a few of them: wanted peer-bias=false, or candidates=0"
            )
        self._settings, self._pool, self._seed = settings, pool, seed
        self.units = Units.of(pool.bank.groups, settings.unit, settings.features_of)
        self._projection = Projection(settings.feature_dim, pool.bank, seed)
        self._p = torch.empty(0, len(pool.bank.groups), settings.feature_dim, dtype=torch.float64)
        self._start = self._p  # the projection of the common start; none before the first client
        self._follows = settings.reference == "update"
        self._added = self._p  # the sum of where each client's training went, if this is what is looked at
        self._samples = torch.empty(0, dtype=torch.int64)  # of those that have trained
        # How late each model is: how many clients have trained since its own did, or came, by how many there are.
        self._ages = torch.empty(0, dtype=torch.float64)

    def add(self, clients: Sequence[str]) -> None:
        """Give new clients the projection of the common start, which is what the pool has of them."""
        if not len(self._start):
            self._start = self._project([len(self._p)])
        self._p = torch.cat([self._p, self._start.expand(len(clients), -1, -1)])
        self._added = pad(self._added, (0, 0, 0, 0, 0, len(clients) if self._follows else 0))
        self._samples, self._ages = (pad(each, (0, len(clients))) for each in (self._samples, self._ages))

    def seen(self) -> Tensor:
        """The projections less the mean of those that may be mixed, or that of the common start: float32 [N, L, d]."""
        if self._settings.reference == "start":
            return self.units.seen(self._p - self._start).float()
        looks = of_length_one(self._added) if self._follows else self._p
        # Nothing is known of where a client goes that has not trained, and it is like nobody.
        known = self._pool.learned if self._follows else self._pool.ready
        seen = self.units.seen(looks)
        return (amn.centred(seen, known) if bool(known.any()) else torch.zeros_like(seen)).float()

    def shares(self) -> Tensor:
        """Who may be mixed, uint8 [N]; float32 where not all count as much: by samples, and by how late models are.

        Of one that trained last and has as many samples as others have on average, or an unknown number, it is 1.
        """
        known, power = self._samples > 0, self._settings.sample_power
        shares = torch.where(known, (self._samples / self._samples[known].double().mean()) ** power, 1.0)
        late = (self._settings.staleness_discount**self._ages).clamp_min(LEAST)
        if bool((late == 1).all()) and not power:
            return self._pool.ready.byte()
        return self._pool.ready * (shares * late).float().clamp_min(torch.finfo(torch.float32).tiny)

    @property
    def width(self) -> int:
        """M, the most models that a client looks at, its own included."""
        peers = len(self._pool.bank.clients)
        return min(peers, self._settings.candidates + 1) if self._settings.candidates else peers

    @property
    def few(self) -> bool:
        """Whether there are more models than a client looks at."""
        return self.width < len(self._pool.bank.clients)

    def candidates(self, round_number: int, clients: Sequence[str]) -> dict[str, Tensor]:
        """The places of the models that each client looks at, its own among them: int64 [M] or shorter, in order.

        All there are if these are no more than M. Otherwise, of those that have trained, the nearest by the inner
        product of features over all units, and some that are drawn: the same ones if it is asked again. A client
        outside the pool's mean has features of 0, so that nobody is near to it and all are drawn.

        Args:
            round_number: the round.
            clients: ids.
        """
        pool, settings = self._pool, self._settings
        if not self.few:
            return dict.fromkeys(clients, torch.arange(self.width))
        f, there = amn.features(self.seen(), settings.meta).flatten(1), pool.learned.nonzero().flatten()

        def choose(client: str) -> Tensor:
            own = pool.bank.rows([client])
            draws = torch_stream(self._seed, "candidates", round_number, client)
            # One product for each client: those of several at a time may round differently with who else is there.
            near, others = f @ f[own[0]].clone(), there[there != own]
            some = nearest_and_drawn(near, others, settings.candidates, settings.candidates_drawn, draws)
            return torch.cat([some, own]).sort().values

        return dict(zip(clients, in_threads(choose, clients), strict=True))

    def lists(self, round_number: int, clients: Sequence[str]) -> Lists:
        """Whom the clients look at, side by side; see `candidates`."""
        places, seen = self.candidates(round_number, clients), self.seen()
        rows, shares = self._pool.bank.rows(clients), self.shares()
        if not self.few:
            return Lists(places, seen, rows, shares.expand(len(clients), -1))
        most = max(map(len, places.values()))
        spare = [torch.cat([at, own.expand(most - len(at))]) for at, own in zip(places.values(), rows, strict=True)]
        own = torch.stack([torch.searchsorted(at, place) for at, place in zip(places.values(), rows, strict=True)])
        there = torch.arange(most) < torch.tensor([len(at) for at in places.values()])[:, None]
        at = torch.stack(spare)
        return Lists(places, seen[at], own, shares[at] * there)

    def update(self, rows: Mapping[str, Row], samples: Sequence[int]) -> None:
        """Project the models of some clients anew, and tell where their training went.

        Args:
            rows: client id -> what its start was mixed from, of the models as they were.
            samples: of each, as many as count in a mean.
        """
        at = self._pool.bank.rows(list(rows))
        self._samples[at] = torch.tensor(samples, dtype=torch.int64)
        self._ages += len(at) / len(self._ages)
        self._ages[at] = 0
        after = self._project(at.tolist())
        if self._follows:
            # A projection is linear: that of a mixture is the mixture of theirs.
            starts = torch.stack([self._mixed(row) for row in rows.values()])
            self._added[at] = self._settings.update_momentum * self._added[at] + directions(after - starts)
        self._p[at] = after

    def update_all(self) -> None:
        """Project all models anew; where training went is a part of the state."""
        self._p = self._project(range(len(self._pool.bank.clients)))

    def state_dict(self) -> Params:
        """What models do not tell and is looked at: where training went, samples, ages; not copied."""
        counts = {"samples": self._samples} if self._settings.sample_power else {}
        counts |= {"ages": self._ages} if self._settings.staleness_discount < 1 else {}
        return counts | ({"added": self._added} if self._follows else {})

    def check(self, state: Params, section: str) -> None:
        """Refuse a state of an earlier version, and say which settings go on without what is missing.

        Args:
            state: as saved.
            section: of the settings.

        Raises:
            ValueError: how many samples clients have, or how late their models are, is missing.
        """
        wanted = {"samples": ("how many samples clients have", "sample-power=0"),
                  "ages": ("how late models are", "staleness-discount=1")}  # fmt: skip
        for name, (what, setting) in wanted.items():
            if name in self.state_dict() and name not in state:
                raise ValueError(f"{what} is missing: {section}.{setting} goes on without it")

    def _mixed(self, row: Row) -> Tensor:
        return torch.einsum("gm,mgd->gd", row.by_group(self._p.shape[1]), self._p[row.places])

    def _project(self, rows: Sequence[int]) -> Tensor:
        return self._projection.of(self._pool.bank, rows)


def directions(changes: Tensor) -> Tensor:
    """What a round tells of its clients: dir of (7), where training went apart from the other clients', of length 1.

    A late round moves a model farther than an early one and tells less of whom it is like, so that none counts more
    than another. With one client or two their mean would leave nothing, or opposites: it is not taken off.

    Args:
        changes: projections of what a round added to the models of n clients: [n, G, d].
    """
    apart = changes - changes.mean(0) if len(changes) > 2 else changes
    alike = apart.norm(dim=-1, keepdim=True) <= ROUNDING * changes.norm(dim=-1, keepdim=True)
    return of_length_one(apart * ~alike)


def of_length_one(p: Tensor) -> Tensor:
    """Vectors [..., d] of length 1; 0 stays 0."""
    return normalize(p, dim=-1, eps=amn.TINY)
