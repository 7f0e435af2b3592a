"""The bank against naive loops: mixing, inner products, and what is replaced."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from fedham_flwr.core import layout
from fedham_flwr.core import sparse as sparse_module
from fedham_flwr.core.parameters import LayerGroup, Manifest, Params
from fedham_flwr.core.trees import read_clients
from fedham_flwr.mixing.bank import Bank

CPU = torch.device("cpu")
GROUPS = (LayerGroup("conv", ("conv.weight", "conv.bias")), LayerGroup("bn", ("bn.weight",), ("bn.mean",)))
SHAPES = {"conv.weight": (2, 3), "conv.bias": (2,), "bn.weight": (3,), "bn.mean": (3,)}
MANIFEST = Manifest(GROUPS, SHAPES, dict.fromkeys(SHAPES, torch.float64))


def models(count: int, seed: int = 0) -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    return [
        {name: torch.randn(shape, generator=generator, dtype=torch.float64) for name, shape in SHAPES.items()}
        for _ in range(count)
    ]


def filled(trees: list[dict[str, Tensor]]) -> Bank:
    bank = Bank(MANIFEST, tuple(SHAPES), CPU)
    for number, tree in enumerate(trees):
        bank.add([str(number)], tree)
    return bank


def random_weights(rows: int, peers: int, seed: int, sparse: bool) -> Tensor:
    weights = torch.rand(rows, peers, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return torch.where(weights < weights.kthvalue(peers - 1, keepdim=True).values, 0.0, weights) if sparse else weights


# ---- the naive loops ------------------------------------------------------------------------------------------------


def mix_slowly(trees: list[dict[str, Tensor]], weights: Tensor, name: str) -> list[Tensor]:
    out = []
    for row in weights.tolist():
        total = torch.zeros(SHAPES[name], dtype=torch.float64)
        for weight, tree in zip(row, trees, strict=True):
            total = total + weight * tree[name]
        out.append(total)
    return out


def scores_slowly(trees: list[dict[str, Tensor]], new: list[dict[str, Tensor]], weights: Tensor, group: int) -> Tensor:
    scores = torch.zeros(weights.shape, dtype=torch.float64)
    for name in GROUPS[group].parameters:  # and not the buffers
        for i, before in enumerate(mix_slowly(trees, weights, name)):
            for j, tree in enumerate(trees):
                scores[i, j] += ((before - new[i][name]) * tree[name]).sum()
    return scores


def check_loops(
    bank: Bank, trees: Sequence[Params], weights: Tensor, mixed: int, who: Sequence[int], new: Sequence[Params]
) -> None:
    """Compare mixtures, and the inner products of the first ones, with the naive loops; `new` is then in the bank."""
    for at, group in enumerate(GROUPS):
        for row, tensors in enumerate(bank.tensors(group.name, r) for r in bank.mix(group.name, weights)):
            for name in group.names:
                assert torch.allclose(tensors[name], mix_slowly(trees, weights, name)[row], atol=1e-12)
        scores = bank.absorb(group.name, [str(i) for i in who], new, weights[:mixed])
        wanted = scores_slowly(trees, new, weights[:mixed], at)
        assert scores.shape == wanted.shape
        assert scores.dtype == torch.float64
        assert torch.allclose(scores[weights[:mixed] > 0], wanted[weights[:mixed] > 0], atol=1e-12)


@given(
    peers=st.integers(2, 9), seed=st.integers(0, 99), sparse=st.booleans(), columns=st.integers(1, 7), data=st.data()
)
def test_mixing_and_inner_products_are_those_of_the_naive_loops(
    peers: int, seed: int, sparse: bool, columns: int, data: st.DataObject
) -> None:
    cohort = data.draw(st.integers(1, peers))
    mixed = data.draw(st.integers(0, cohort))
    trees, new = models(peers, seed), models(cohort, seed + 1000)
    who = torch.randperm(peers, generator=torch.Generator().manual_seed(seed))[:cohort].tolist()
    weights = random_weights(cohort, peers, seed, sparse)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(layout, "COLUMNS", columns)  # pieces that do not divide the groups
        patch.setattr(sparse_module, "SPARSE", 1 if sparse else 1000)
        bank = filled(trees)
        check_loops(bank, trees, weights, mixed, who, new)
    for number, tree in enumerate(trees):
        held = new[who.index(number)] if number in who else tree
        assert all(torch.equal(tensor, held[name]) for name, tensor in bank.model(str(number)).items())


@given(peers=st.integers(1, 6), seed=st.integers(0, 99), columns=st.integers(1, 7), data=st.data())
def test_models_that_are_put_stand_in_place_of_the_old_ones(
    peers: int, seed: int, columns: int, data: st.DataObject
) -> None:
    trees = models(peers, seed)
    who = data.draw(st.lists(st.integers(0, peers - 1), min_size=1, unique=True))
    new = dict(zip(who, models(len(who), seed + 1000), strict=True))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(layout, "COLUMNS", columns)
        bank = filled(trees)
        bank.put([str(i) for i in who], list(new.values()))
    assert bank.clients == tuple(map(str, range(peers)))
    for number, tree in enumerate(trees):
        held = bank.model(str(number))
        assert held.keys() == tree.keys()
        assert all(torch.equal(tensor, new.get(number, tree)[name]) for name, tensor in held.items())


def test_putting_no_models_changes_nothing() -> None:
    trees = models(2)
    bank = filled(trees)
    bank.put([], [])
    for client, tree in zip(bank.clients, trees, strict=True):
        assert all(torch.equal(tensor, tree[name]) for name, tensor in bank.model(client).items())


@given(peers=st.integers(1, 6), seed=st.integers(0, 99), columns=st.integers(1, 7))
def test_inner_products_with_a_direction_are_those_of_the_parameters_alone(peers: int, seed: int, columns: int) -> None:
    trees, (direction,) = models(peers, seed), models(1, seed + 1000)
    bank = filled(trees)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(layout, "COLUMNS", columns)
        for group in GROUPS:
            only = {name: direction[name] for name in group.parameters}  # a network's gradient knows no buffers
            found = bank.inner(group.name, only)
            wanted = [sum((direction[n] * tree[n]).sum().item() for n in group.parameters) for tree in trees]
            assert found.dtype == torch.float64
            assert found.tolist() == pytest.approx(wanted, rel=1e-12, abs=1e-12)
            assert torch.equal(bank.inner(group.name, direction), found)


def test_inner_products_of_many_pieces_are_added_up_in_float64() -> None:
    size = 5 * layout.COLUMNS + 3
    manifest = Manifest((LayerGroup("fc", ("w",)),), {"w": (size,)}, {"w": torch.float32})
    bank = Bank(manifest, ("w",), CPU)
    for client, value in (("0", 1.0), ("1", -2.0)):
        bank.add([client], {"w": torch.full((size,), value)})
    slope = torch.zeros(size)
    slope[0], slope[layout.COLUMNS :: layout.COLUMNS] = 2.0**24, 1.0  # in float32 2^24 + 1 is 2^24
    assert bank.inner("fc", {"w": slope}).tolist() == [2.0**24 + 5, -2 * (2.0**24 + 5)]


def test_mixing_a_model_alone_gives_that_model_bit_for_bit() -> None:
    trees = models(5)
    (row,) = filled(trees).mix("conv", torch.eye(5, dtype=torch.float64)[3:4])
    assert torch.equal(row, torch.cat([trees[3]["conv.weight"].flatten(), trees[3]["conv.bias"]]))


def test_the_number_of_threads_changes_no_bit() -> None:
    """Torch's own product of 5 x 5 weights and 5 x 9,000 scalars differs between one thread and two."""
    manifest = Manifest((LayerGroup("fc", ("w",)),), {"w": (9_000,)}, {"w": torch.float32})
    draw, results = torch.Generator().manual_seed(0), []
    trees = [{"w": torch.randn(9_000, generator=draw)} for _ in range(10)]
    for sparse in (False, True):
        weights = random_weights(5, 5, 0, sparse).float()
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            bank = Bank(manifest, ("w",), CPU)
            for i, tree in enumerate(trees[:5]):
                bank.add([str(i)], tree)
            results.append((bank.mix("fc", weights), bank.absorb("fc", list("01234"), trees[5:], weights)))
            assert torch.get_num_threads() == threads
        first, *others = results[-3:]
        assert all(torch.equal(first[0], mixed) and torch.equal(first[1], scores) for mixed, scores in others)


def test_known_answer_a() -> None:
    groups = (LayerGroup("1", ("a",)), LayerGroup("2", ("b",)))
    manifest = Manifest(groups, {"a": (2,), "b": (1,)}, dict.fromkeys("ab", torch.float32))
    bank = Bank(manifest, ("a", "b"), CPU)
    for client, a, b in (("0", [1.0, 2.0], [0.0]), ("1", [3.0, 4.0], [10.0]), ("2", [5.0, 6.0], [20.0])):
        bank.add([client], {"a": torch.tensor(a), "b": torch.tensor(b)})
    assert bank.mix("1", torch.tensor([[0.5, 0.25, 0.25]])).tolist() == [[2.5, 3.5]]
    assert bank.mix("2", torch.tensor([[0.0, 0.0, 1.0]])).tolist() == [[20.0]]


def test_a_new_client_moves_nobody() -> None:
    trees = models(3)
    bank, (newcomer,) = filled(trees), models(1, seed=9)
    bank.add(["late"], newcomer)
    assert bank.clients == ("0", "1", "2", "late")
    assert bank.rows(["late", "1"]).tolist() == [3, 1]
    for client, tree in zip(bank.clients, [*trees, newcomer], strict=True):
        assert all(torch.equal(tensor, tree[name]) for name, tensor in bank.model(client).items())


def test_tensors_that_stay_with_the_clients_have_no_place() -> None:
    bank = Bank(MANIFEST, ("conv.weight", "conv.bias", "bn.weight"), CPU)
    bank.add(["0"], models(1)[0])
    assert {group: tuple(array.shape) for group, array in bank.arrays.items()} == {"conv": (1, 8), "bn": (1, 3)}
    assert set(bank.model("0")) == {"conv.weight", "conv.bias", "bn.weight"}


def test_the_state_names_the_clients_in_the_order_of_the_rows() -> None:
    bank = filled(models(3))
    bank.add(["St. Mary's", "Zürich"], models(1)[0])
    assert read_clients(bank.state_dict()) == bank.clients == ("0", "1", "2", "St. Mary's", "Zürich")
    assert read_clients(Bank(MANIFEST, tuple(SHAPES), CPU).state_dict()) == ()
    for state in ({}, {"clients": torch.zeros(3)}, {"clients": torch.zeros(3, 1, dtype=torch.uint8)}):
        with pytest.raises(ValueError, match="the state lacks its clients"):
            read_clients(state)


def test_a_model_that_is_not_finite_is_refused_by_name() -> None:
    bank = filled(models(3))
    bank.check()
    bank.arrays["conv"][1, 4] = float("nan")
    with pytest.raises(ValueError, match="the model of client 1 in the bank holds NaN or infinity in conv"):
        bank.check()
