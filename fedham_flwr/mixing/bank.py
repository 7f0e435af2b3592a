"""The bank: the last model of every client, stacked, one preallocated array per layer group.

Shape letters: N clients in the bank, n clients of a cohort, P scalars of a layer group. Two operations make up the
server's work for any method that mixes models: `mix`, one matrix product over the bank per layer group, and
`absorb`, which gives the inner products that the gradient of the mixing weights needs and puts the new models in
place of the old ones. `absorb` goes through the bank once, in pieces that stay in the processor's cache, and makes
the mixed models anew piece by piece: keeping them from the one to the other would take as much memory as the bank.

A bank beyond a limit of memory lies in a file; see core/disk.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from fedham_flwr.core import disk
from fedham_flwr.core.arrays import Arrays, Storage, fill
from fedham_flwr.core.layout import blocks_of, pieces, width
from fedham_flwr.core.mapped import release
from fedham_flwr.core.parameters import Manifest, Params, all_finite, empty
from fedham_flwr.core.sparse import Factor
from fedham_flwr.core.threads import in_threads
from fedham_flwr.core.trees import write_clients

LANES = 16
"""Sums that the inner products of a layer group are added up in, so that as many threads can take part."""


class Bank:
    """Models of the clients that a run has seen, in the order in which they came.

    Args:
        manifest: the model's.
        names: tensors to hold; those that stay with the clients are left out.
        device: where the arrays are.
        storage: where they may be on a processor; in memory by default.

    Attributes:
        clients: ids, in the order of the rows.
        arrays: layer group -> [N, P], parameters before buffers.
    """

    def __init__(
        self, manifest: Manifest, names: Sequence[str], device: torch.device, storage: Storage | None = None
    ) -> None:
        held = set(names)
        groups = [group for group in manifest.groups if held & set(group.names)]
        self.clients: tuple[str, ...] = ()
        self._blocks = {group.name: blocks_of(group, held, manifest) for group in groups}
        self._rows: dict[str, int] = {}
        none = {
            name: torch.empty(0, sum(block.size for block in blocks), dtype=manifest.dtypes[blocks[0].name]).to(device)
            for name, blocks in self._blocks.items()
        }
        self._arrays = Arrays(none, storage or Storage())
        self.arrays = self._arrays.of

    @property
    def groups(self) -> tuple[str, ...]:
        """Names of the layer groups."""
        return tuple(self.arrays)

    def add(self, clients: Sequence[str], model: Mapping[str, Tensor]) -> None:
        """Give each of the clients a row that holds this model; the rows there are do not change.

        Args:
            clients: ids that the bank does not have.
            model: the tensors that the bank holds.

        Raises:
            UserError: the bank is too large for memory, and the disk is full.
        """
        assert not self._rows.keys() & set(clients), "these clients have rows"
        there = len(self.clients)
        self._arrays.grow(there + len(clients))
        self.clients = (*self.clients, *clients)
        self._rows = {client: row for row, client in enumerate(self.clients)}
        for group, blocks in self._blocks.items():
            array = self.arrays[group][there:]
            row = torch.cat([model[block.name].reshape(-1) for block in blocks]).to(array.device)
            fill(array, row)

    def rows(self, clients: Sequence[str]) -> Tensor:
        """Numbers of the clients' rows: int64 [n]."""
        return torch.tensor([self._rows[client] for client in clients], dtype=torch.int64)

    def model(self, client: str) -> Params:
        """A client's last model: live views of its row."""
        row = self._rows[client]
        return {name: t for group, array in self.arrays.items() for name, t in self.tensors(group, array[row]).items()}

    def tensors(self, group: str, row: Tensor) -> Params:
        """The tensors of a layer group as views of a row [P] of its array."""
        blocks = self._blocks[group]
        return {block.name: row[block.start : block.start + block.size].view(block.shape) for block in blocks}

    def mix(self, group: str, weights: Tensor) -> Tensor:
        """sum_j weights_ij w_j for the cohort's clients i: one matrix product.

        Args:
            group: a layer group.
            weights: [n, N].

        Returns:
            [n, P].
        """
        array = self.arrays[group]
        if self._arrays.on_disk:
            return disk.mix(array, weights)
        factor = Factor(weights.to(array))
        mixed = empty((len(weights), array.shape[1]), array)

        def fill(piece: slice) -> None:
            mixed[:, piece] = factor.times(array[:, piece])

        in_threads(fill, pieces(0, array.shape[1], columns=width(len(array))))
        return mixed

    def put(self, clients: Sequence[str], models: Sequence[Mapping[str, Tensor]]) -> None:
        """Put models in place of the clients' old ones.

        Args:
            clients: ids that the bank has.
            models: the tensors that the bank holds, for each.
        """
        for client, model in zip(clients, models, strict=True):
            for name, tensor in self.model(client).items():
                tensor.copy_(model[name])
        self._arrays.release()

    def inner(self, group: str, direction: Mapping[str, Tensor]) -> Tensor:
        """<direction, w_j> over a group's parameters for every model j of the bank: float64 [N].

        Args:
            group: a layer group.
            direction: a tensor for each of its parameters.
        """
        array = self.arrays[group]
        found = torch.zeros(len(array), dtype=torch.float64, device=array.device)
        for block in self._blocks[group]:
            if block.parameter:
                flat = direction[block.name].reshape(-1).to(array)
                for piece in pieces(0, block.size):
                    found += array[:, block.start + piece.start : block.start + piece.stop] @ flat[piece]
        return found.cpu()

    def absorb(
        self, group: str, clients: Sequence[str], uploads: Sequence[Mapping[str, Tensor]], weights: Tensor
    ) -> Tensor:
        """Put the clients' new models in place of their old ones, and tell how the change lay to the old bank.

        Args:
            group: a layer group.
            clients: ids of the n clients that trained.
            uploads: their models after training.
            weights: [m, N], the mixing weights that the first m of them started from; the others' start does not
                depend on any.

        Returns:
            <before_i - after_i, w_j> over the group's parameters, for the first m clients i and every model j of the
            bank as it was; where weights_ij is 0 it may be left at 0. Float64 [m, N].
        """
        if self._arrays.on_disk:
            return self._absorb_on_disk(group, clients, uploads, weights)
        array, rows, factor = self.arrays[group], self.rows(clients), Factor(weights.to(self.arrays[group]))

        def lane(number: int) -> Tensor:
            """Every `LANES`th piece; in float64, since the sums run over millions of terms."""
            scores = factor.empty_scores()
            for block in self._blocks[group]:
                flat = [upload[block.name].reshape(-1) for upload in uploads]
                for piece in pieces(number, block.size, LANES):
                    after = torch.stack([tensor[piece] for tensor in flat]).to(array.device)
                    old = array[:, block.start + piece.start : block.start + piece.stop]
                    if block.parameter and len(weights):
                        scores += factor.scores(old, after[: len(weights)])
                    old[rows] = after
            return scores

        return factor.dense(torch.stack(in_threads(lane, range(LANES))).sum(0))

    def _absorb_on_disk(
        self, group: str, clients: Sequence[str], uploads: Sequence[Mapping[str, Tensor]], weights: Tensor
    ) -> Tensor:
        blocks = self._blocks[group]

        def after(number: int, columns: slice) -> Tensor:
            return torch.cat([uploads[number][b.name].reshape(-1)[b.within(columns)] for b in blocks])

        counted = torch.cat([torch.full((block.size,), block.parameter) for block in blocks])
        return disk.absorb(self.arrays[group], self.rows(clients).tolist(), after, weights, counted)

    def release(self) -> None:
        """Let go of what of a bank on disk is in memory."""
        self._arrays.release()

    def state_dict(self) -> Params:
        """The arrays by layer group, live, and the clients' ids as UTF-8 with a line for each."""
        return {**write_clients(self.clients), **{f"bank/{group}": array for group, array in self.arrays.items()}}

    def check(self) -> None:
        """Refuse a model that is not finite: every mixture that it is part of would not be either.

        Raises:
            ValueError: the first such model.
        """
        for group, array in self.arrays.items():
            for client, row in zip(self.clients, array, strict=True):
                if not all_finite(row):
                    raise ValueError(f"the model of client {client} in the bank holds NaN or infinity in {group}")
                release(row)
