"""Models that lie in a file: mixtures and inner products of what does not fit into memory, a block of rows at a time.

Shape letters: N models of P scalars in the file, n clients, of which m have weights. The file has one model after the
other. In memory the bank is gone through in pieces of columns; of a file that would read a few pages of each model over
and over. Here blocks of whole rows are read one after the other, first for the mixtures and again for the inner
products, and of those rows only that have a weight: with the ten largest of each of a hundred clients, a thousand at
most. The sums differ from those in memory by rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from fedham_flwr.core.arrays import blocks
from fedham_flwr.core.mapped import release
from fedham_flwr.core.parameters import empty
from fedham_flwr.core.sparse import Factor
from fedham_flwr.core.threads import in_threads

SPAN = 1 << 28
"""Bytes of mixtures that are in memory at a time while inner products are made."""
FEW = 16
"""Rows that are looked at in the file before its pages are let go of: a system may map 2 MB for each."""
COLUMNS = 4096
"""Scalars of each model in one piece of a block: as those of a bank in memory."""


def mix(array: Tensor, weights: Tensor) -> Tensor:
    """sum_j weights_ij w_j.

    Args:
        array: [N, P], the models, or some columns of them.
        weights: [n, N].

    Returns:
        [n, P], in memory.
    """
    mixed = empty((len(weights), array.shape[1]), array).zero_()
    for columns in _spans(array.shape[1], len(weights)):
        part = mixed[:, columns]
        for rows, models in _blocks(array[:, columns], _used(weights)):
            factor = Factor(weights[:, rows].to(models))

            def fill(piece: slice, part: Tensor = part, models: Tensor = models, factor: Factor = factor) -> None:
                part[:, piece] += factor.times(models[:, piece])

            in_threads(fill, _pieces(models))
    return mixed


def absorb(
    array: Tensor, rows: Sequence[int], after: Callable[[int, slice], Tensor], weights: Tensor, counted: Tensor
) -> Tensor:
    """Put new models in place of old ones, and tell how the change lay to the old bank.

    Args:
        array: [N, P].
        rows: the n places of the new models.
        after: given one of 0 to n - 1 and some columns, these of that new model.
        weights: [m, N], the mixing weights that the first m started from.
        counted: bool [P], which scalars are parameters.

    Returns:
        As `Bank.absorb`: float64 [m, N].
    """
    scores = torch.zeros(weights.shape, dtype=torch.float64)
    for columns in _spans(array.shape[1], len(weights)):
        view = array[:, columns]
        if len(weights):
            _score(view, _change(view, columns, after, weights, counted), weights, scores)
        order = sorted(range(len(rows)), key=rows.__getitem__)
        for first in range(0, len(rows), FEW):
            for number in order[first : first + FEW]:
                view[rows[number]] = after(number, columns)
            release(array)
    return scores


def _change(
    view: Tensor, columns: slice, after: Callable[[int, slice], Tensor], weights: Tensor, counted: Tensor
) -> Tensor:
    """What training took from some columns of the m mixtures, 0 where they are no parameters: [m, p]."""
    change = mix(view, weights)
    for number, mixed in enumerate(change):
        mixed.sub_(after(number, columns))
    return change.mul_(counted[columns])


def _score(view: Tensor, change: Tensor, weights: Tensor, scores: Tensor) -> None:
    """Add the inner products of changes [m, p] with models [N, p] to scores [m, N]."""
    for rows, models in _blocks(view, _used(weights)):
        factor = Factor(weights[:, rows].to(models))

        def products(piece: slice, models: Tensor = models, factor: Factor = factor) -> Tensor:
            return factor.products(change[:, piece], models[:, piece]).double()

        found = factor.empty_scores()
        for some in in_threads(products, _pieces(models)):
            found += some
        scores[:, rows] += factor.dense(found)


def _used(weights: Tensor) -> Tensor:
    """The rows that have a part in some mixture."""
    return weights.count_nonzero(0).nonzero().flatten()


def _blocks(view: Tensor, rows: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Some rows of the file a block at a time: which, and their scalars in memory, which the next block overwrites."""
    ranges = blocks(len(rows), view)
    room = empty((max((r.stop - r.start for r in ranges), default=0), view.shape[1]), view)
    for some in ranges:
        chosen = rows[some]
        models = room[: len(chosen)]
        for first in range(0, len(chosen), FEW):
            torch.index_select(view, 0, chosen[first : first + FEW], out=models[first : first + FEW])
            release(view)
        yield chosen, models


def _spans(size: int, models: int) -> list[slice]:
    """Cuts of the columns, so that those of all mixtures fit into memory."""
    width = max(COLUMNS, SPAN // (4 * max(1, models)))
    return [slice(a, min(a + width, size)) for a in range(0, size, width)]


def _pieces(models: Tensor) -> list[slice]:
    return [slice(a, min(a + COLUMNS, models.shape[1])) for a in range(0, models.shape[1], COLUMNS)]
