"""Mixing with rows over a few of the models in a pool, each client's own: nothing here has a size of n times N.

Shape letters: N models in the pool, n clients, M models of a row, G layer groups, L units, each with a row of its own,
P scalars of a layer group, d dimensions of a projection.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from fedham_flwr.core.layout import COLUMNS
from fedham_flwr.core.parameters import Params
from fedham_flwr.core.records import MixingWeights
from fedham_flwr.core.threads import in_threads
from fedham_flwr.mixing.pool import Pool


@dataclass(frozen=True)
class Units:
    """The units of a model; each has a row of its own.

    Attributes:
        parts: of each unit, its layer groups, by number.
        looks: of each unit, the layer groups whose projections its row is made from.
    """

    parts: tuple[tuple[int, ...], ...]
    looks: tuple[tuple[int, ...], ...]

    @classmethod
    def of(cls, groups: Sequence[str], unit: str, features_of: str) -> Units:
        """The units of a model, whose head is the last layer group.

        Args:
            groups: names of the layer groups, in the model's order.
            unit: what has a row of its own, see `AttentionSettings`.
            features_of: whose projections a row is made from, see there.
        """
        every, *body = tuple(range(len(groups))), *range(len(groups) - 1)
        head = every[-1:]
        parts = {
            "layer": tuple((group,) for group in every),
            "body": (tuple(body), head) if body else (head,),
            "model": (every,),
        }[unit]
        seen = {"own": parts, "head": (head,) * len(parts), "all": (every,) * len(parts)}
        return cls(parts, seen[features_of])

    def __len__(self) -> int:
        return len(self.parts)

    @property
    def groups(self) -> int:
        """G."""
        return sum(map(len, self.parts))

    def seen(self, projections: Tensor) -> Tensor:
        """What each unit looks at: the projections of its layer groups [n, G, d], added up: [n, L, d]."""
        return torch.stack([projections[:, list(some)].sum(1) for some in self.looks], 1)

    def scores(self, per_group: Tensor) -> Tensor:
        """Inner products by layer group [..., G, N] as inner products by unit [..., L, N]."""
        if len(self) == self.groups:
            return per_group
        return torch.stack([per_group[..., list(some), :].sum(-2) for some in self.parts], -2)

    def rows(self, weights: Tensor) -> Tensor:
        """Weights by unit [..., L, N] as weights by layer group [..., G, N]; those of one unit stay one row for all."""
        if len(self) in (1, self.groups):
            return weights
        return weights[..., list(self.unit_of), :]

    def by_group(self, weights: Tensor) -> Tensor:
        """Weights by unit [n, L, N] as weights by layer group [n, G, N]."""
        return self.rows(weights).expand(-1, self.groups, -1)

    @property
    def unit_of(self) -> tuple[int, ...]:
        """The unit of each layer group."""
        return tuple(unit for unit, some in enumerate(self.parts) for _ in some)


class Row(NamedTuple):
    """What one client's start is mixed from."""

    places: Tensor  # int64 [M], of the models in the pool, in order
    weights: Tensor  # float [G, M], of each layer group; or [1, M], of them all

    def by_group(self, groups: int) -> Tensor:
        """The weights of each of G layer groups: float64 [G, M]."""
        return self.weights.double().expand(groups, -1)

    def of(self, places: Tensor) -> Row:
        """The row of a mixture of some of the models: their weights made to sum to 1; equal where none has any."""
        weights = self.weights[:, torch.searchsorted(self.places, places)].double()
        total = weights.sum(-1, keepdim=True)
        return Row(places, torch.where(total > 0, weights / total, 1 / max(1, len(places))).float())

    def spread(self, mixture: Row) -> Row:
        """The row with the sum of the weights of a mixture's models shared out among them as in the mixture."""
        at = torch.searchsorted(self.places, mixture.places)
        weights = self.weights.double().expand(max(len(self.weights), len(mixture.weights)), -1).clone()
        weights[:, at] = weights[:, at].sum(-1, keepdim=True) * mixture.weights
        return Row(self.places, weights)


def hybrids(pool: Pool, rows: Mapping[str, Row]) -> dict[str, Params]:
    """The mixed model of each client.

    Args:
        pool: whose models are mixed.
        rows: client id -> its row. If all of them are over all models, mixing is one matrix product.
    """
    if _whole(pool, rows):
        return pool.mixtures(list(rows), dense(pool, rows))

    def one(row: Row) -> Params:
        mixed: Params = {}
        for at, group in enumerate(pool.bank.groups):
            mixed |= pool.bank.tensors(group, _mixed(pool, row, at).cpu())
        return mixed

    mixed = dict(zip(rows, in_threads(one, rows.values()), strict=True))
    pool.bank.release()
    return mixed


def learn(pool: Pool, models: Mapping[str, Params], rows: Mapping[str, Row]) -> dict[str, Tensor]:
    """Put trained models into the pool, and tell how training lay to the models that were mixed.

    Args:
        pool: its models are changed.
        models: of n clients, all tensors that the pool holds; all are parameters.
        rows: theirs, that their starts were mixed with.

    Returns:
        Client id -> <start_i - trained_i, w_j> for each layer group and model j of its row: float64 [G, M].
    """
    rows = {client: rows[client] for client in models}
    if _whole(pool, rows):
        return dict(zip(models, pool.absorb(models, dense(pool, rows)), strict=True))

    def one(client: str) -> Tensor:
        row, found = rows[client], []
        for at, group in enumerate(pool.bank.groups):
            array, change = pool.bank.arrays[group], _mixed(pool, row, at)
            for name, tensor in pool.bank.tensors(group, change).items():
                tensor.sub_(models[client][name].to(tensor))
            # In float64, since the sums run over millions of terms.
            products = [array[row.places, piece].double() @ change[piece].double() for piece in _pieces(array)]
            found.append(torch.stack(products).sum(0).cpu())
        return torch.stack(found)

    scores = dict(zip(models, in_threads(one, models), strict=True))
    pool.put(models)
    pool.bank.release()
    return scores


def dense(pool: Pool, rows: Mapping[str, Row]) -> Tensor:
    """The rows over all models: float [n, G, N], 0 where a client has no weight."""
    groups, peers = len(pool.bank.groups), len(pool.bank.clients)
    if _whole(pool, rows):
        return torch.stack([row.weights for row in rows.values()]).expand(-1, groups, -1)
    found = torch.zeros(len(rows), groups, peers)
    for weights, row in zip(found, rows.values(), strict=True):
        weights[:, row.places] = row.weights
    return found


def mixing_weights(pool: Pool, rows: Mapping[str, Row]) -> MixingWeights:
    """The rows as results: who learns from whom; of rows over a few models, these alone."""
    bank = pool.bank
    if _whole(pool, rows):
        return MixingWeights(tuple(rows), bank.groups, bank.clients, dense(pool, rows))
    most, groups = max(len(row.places) for row in rows.values()), len(bank.groups)
    weights, places = torch.zeros(len(rows), groups, most), torch.zeros(len(rows), groups, most, dtype=torch.int64)
    for at, row in enumerate(rows.values()):
        weights[at, :, : len(row.places)], places[at, :, : len(row.places)] = row.weights, row.places
    return MixingWeights(tuple(rows), bank.groups, bank.clients, weights, places)


def _whole(pool: Pool, rows: Mapping[str, Row]) -> bool:
    """Whether the rows are over all models; never of none."""
    return bool(rows) and all(len(row.places) == len(pool.bank.clients) for row in rows.values())


def _mixed(pool: Pool, row: Row, at: int) -> Tensor:
    """sum_j weights_j w_j over the models of a row, in one layer group: [P]."""
    array = pool.bank.arrays[pool.bank.groups[at]]
    weights = row.weights[at % len(row.weights)].to(array)
    return torch.cat([weights @ array[row.places, piece] for piece in _pieces(array)])


def _pieces(array: Tensor) -> list[slice]:
    """The columns of an array [N, P], so many at a time that a few rows of them stay in the processor's cache."""
    return [slice(at, at + COLUMNS) for at in range(0, array.shape[1], COLUMNS)]
