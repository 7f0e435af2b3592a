"""Operations on trees of named tensors: cut, joined, stacked, averaged, subtracted, compared and counted.

Sign convention, fixed here once: `delta = after - before`, so the server's gradient is `-delta`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor
from torch.nn.functional import pad

from fedham_flwr.core.parameters import Params, check_names


def split(params: Mapping[str, Tensor], names: Iterable[str]) -> tuple[Params, Params]:
    """Cut a tree in two: the tensors named, and the rest; both keep their order. The inverse of `merge`.

    Raises:
        ValueError: a name that the tree does not have.
    """
    chosen = set(names)
    if unknown := sorted(chosen - params.keys()):
        raise ValueError(f"no tensors named {unknown}")
    return {n: t for n, t in params.items() if n in chosen}, {n: t for n, t in params.items() if n not in chosen}


def merge(first: Mapping[str, Tensor], second: Mapping[str, Tensor], order: Sequence[str]) -> Params:
    """Join two disjoint trees in the order given. The inverse of `split`.

    Raises:
        ValueError: a tensor in both trees, or the two together are not exactly `order`.
    """
    if both := sorted(first.keys() & second.keys()):
        raise ValueError(f"tensors in both trees: {both}")
    joined = {**first, **second}
    if joined.keys() != set(order):
        raise ValueError(f"the trees together differ from the names wanted: {sorted(joined.keys() ^ set(order))}")
    return {name: joined[name] for name in order}


def stack(trees: Sequence[Mapping[str, Tensor]]) -> Params:
    """One tensor [n, ...] per name from n trees with the same names: the bank of the clients' models."""
    stacked: Params = {}
    for name, first in trees[0].items():
        parts = [tree[name] for tree in trees]
        common = all(same(part, first) for part in parts)
        stacked[name] = first.expand(len(parts), *first.shape).clone() if common else torch.stack(parts)
    return stacked


def same(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors are the same numbers in the same memory."""
    return one is other or (
        one.data_ptr() == other.data_ptr()
        and one.shape == other.shape
        and one.dtype == other.dtype
        and one.stride() == other.stride()
    )


def weighted_mean(trees: Sequence[Mapping[str, Tensor]], weights: Sequence[float]) -> Params:
    """sum_k weights_k tree_k / sum_k weights_k, name by name, one tree at a time.

    Summed in float64 in the order given, so the mean of equal trees is that tree, bit for bit.

    Args:
        trees: n >= 1 trees with the same names and shapes.
        weights: n positive numbers.

    Raises:
        ValueError: no trees, or a weight that is not positive and finite.
    """
    if not trees or len(trees) != len(weights):
        raise ValueError(f"a mean needs one weight for each of at least one tree: {len(trees)}, {len(weights)}")
    scale = torch.tensor(weights, dtype=torch.float64)
    if not bool(torch.isfinite(scale).all()) or not bool((scale > 0).all()):
        raise ValueError(f"weights must be positive and finite: {list(weights)}")
    scale /= scale.sum()
    mean: Params = {}
    for name, first in trees[0].items():
        total = torch.zeros(first.shape, dtype=torch.float64)
        for tree, weight in zip(trees, scale.tolist(), strict=True):
            total.add_(tree[name], alpha=weight)
        mean[name] = total.to(first.dtype)
    return mean


def delta(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> Params:
    """After - before, name by name: what local training did; its negative is the server's gradient."""
    return {name: after[name] - before[name] for name in after}


def check_like(given: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> None:
    """Refuse tensors that have not the names, shapes and dtypes of those wanted.

    Raises:
        ValueError: the first fault.
    """
    check_names(given, wanted)
    for name, tensor in wanted.items():
        what = [f"{t.dtype} {tuple(t.shape)}" for t in (given[name], tensor)]
        if what[0] != what[1]:
            raise ValueError(f"{name} is {what[0]}, wanted {what[1]}")


def write_clients(clients: Sequence[str]) -> Params:
    """The ids of clients as a tensor named `clients`, for a server's state: UTF-8, a line for each."""
    return {"clients": torch.tensor(list("\n".join(clients).encode()), dtype=torch.uint8)}


def read_clients(state: Mapping[str, Tensor]) -> tuple[str, ...]:
    """The inverse of `write_clients`.

    Raises:
        ValueError: the state does not name its clients.
    """
    ids = state.get("clients")
    if ids is None or ids.dtype != torch.uint8 or ids.dim() != 1:
        raise ValueError("the state lacks its clients: wanted uint8 [bytes] named 'clients', which is missing")
    return tuple(bytes(ids.tolist()).decode().split("\n")) if len(ids) else ()


def num_bytes(params: Mapping[str, Tensor]) -> int:
    """Payload of a tree in bytes, without names and framing."""
    return sum(tensor.numel() * tensor.element_size() for tensor in params.values())


def side_by_side(scores: Sequence[Tensor]) -> Tensor:
    """Scores [L, M] of n clients as [n, L, M], with 0 where a client's list is shorter."""
    most = max(each.shape[-1] for each in scores)
    return torch.stack([pad(each, (0, most - each.shape[-1])) for each in scores])
