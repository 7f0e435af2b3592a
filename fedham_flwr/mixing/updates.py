"""The clients' last updates, and how alike they are in each layer.

Shape letters: N clients, n of them, L layer groups, P scalars of a layer group.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fedham_flwr.algorithms.fedaghn import cosines
from fedham_flwr.core.arrays import Storage, blocks
from fedham_flwr.core.layout import pieces
from fedham_flwr.core.mapped import release
from fedham_flwr.core.parameters import Manifest, Params, enlarged
from fedham_flwr.core.threads import in_threads
from fedham_flwr.mixing.bank import LANES, Bank


class Updates:
    """What training last added to each client's model, and all inner products of that.

    Args:
        manifest: the model's.
        first: the shared tensors, all of them parameters.
        device: where the updates are.
        storage: where they may be.
    """

    def __init__(self, manifest: Manifest, first: Params, device: torch.device, storage: Storage) -> None:
        self._none = {name: torch.zeros_like(tensor) for name, tensor in first.items()}
        self._bank = Bank(manifest, tuple(first), device, storage)
        self._products = torch.zeros(len(self._bank.groups), 0, 0, dtype=torch.float64)

    def add(self, clients: Sequence[str]) -> None:
        """Give new clients an update of 0."""
        self._bank.add(clients, self._none)
        there = len(self._bank.clients)
        self._products = enlarged(self._products, (len(self._products), there, there), self._products)

    def alike(self, rows: Tensor) -> Tensor:
        """The cosines of some clients' updates with all, 0 with one of 0: float64 [n, L, N].

        Args:
            rows: int64 [n].
        """
        squares = self._products.diagonal(dim1=1, dim2=2)
        found = [cosines(every[rows], all_[rows], all_) for every, all_ in zip(self._products, squares, strict=True)]
        return torch.stack(found, 1)

    def put(self, clients: Sequence[str], updates: Sequence[Params]) -> None:
        """Put new updates in place of the clients' old ones.

        Args:
            clients: ids.
            updates: of each.
        """
        self._bank.put(clients, updates)
        rows = self._bank.rows(clients)
        for at, group in enumerate(self._bank.groups):
            found = _products(self._bank.arrays[group], rows)
            self._products[at, rows], self._products[at, :, rows] = found, found.T

    def state_dict(self) -> Params:
        """The updates by layer group, and their inner products; live, not copied."""
        return {f"update/{n}": t for n, t in self._bank.arrays.items()} | {"update-products": self._products}

    def check(self) -> None:
        """Refuse updates whose inner products are not finite.

        Raises:
            ValueError: some are not.
        """
        if not bool(torch.isfinite(self._products).all()):
            raise ValueError("the inner products of the clients' updates hold NaN or infinity, wanted numbers")


def _products(array: Tensor, rows: Tensor) -> Tensor:
    """<D_i, D_j> of some rows with all rows of an array [N, P], in sums whose order is fixed: float64 [n, N].

    The array is read by blocks of whole rows, since it may lie in a file.
    """
    mine, found = array[rows], torch.zeros(len(rows), len(array), dtype=torch.float64)
    for some in blocks(len(array), array):
        theirs = array[some]

        def lane(number: int, theirs: Tensor = theirs) -> Tensor:
            total = torch.zeros(len(mine), len(theirs), dtype=torch.float64, device=array.device)
            for piece in pieces(number, array.shape[1], LANES):
                total += mine[:, piece].double() @ theirs[:, piece].double().T
            return total

        found[:, some] = torch.stack(in_threads(lane, range(LANES))).sum(0).cpu()
        release(array)
    return found
